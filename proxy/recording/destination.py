"""Where a recorded stream goes: on to a destination, or nowhere."""

from typing import TYPE_CHECKING, Final

from formats.channels.return_path import ReturnPathListener, pong, shut
from formats.frame.records import CommandType
from proxy.errors import PeerError, RefusedError
from proxy.old_source import let_wait

if TYPE_CHECKING:
    from formats.frame.event import Raw
    from formats.stream.events import Command
    from proxy.net.connection import Connection
    from proxy.recording.reading_along import Follower

_MOST_WAITS: Final = 10
_GOODBYE: Final = 10.0
"""Seconds that a source may take to end the connection once it was told to keep its guest."""

_DID_NOT_TAKE_IT: Final = 1
"""The value of the recorder's SHUT; any but 0 has the source keep its guest."""

RETURN_BUFFER: Final = 64 << 10

NO_RETURN_PATH: Final = (
    "the source opened no return path, so it cannot be told to keep its guest, and would give it up to a file; turn "
    "the migration capability return-path on (QMP: migrate-set-capabilities), or pass --allow-no-return-path"
)


class Onward:
    """A destination behind the recorder: everything is passed on, both ways.

    Attributes:
        patience: Seconds that the source may say nothing before `silence` is called.
        listener: What has heard the destination's words.
        ended: Whether it has ended its side.
    """

    patience: Final = float("inf")

    def __init__(self, source: "Connection", destination: "Connection") -> None:
        self._source = source
        self._destination = destination
        self.listener = ReturnPathListener()
        self.ended = False

    async def take(self, data: "Raw", _commands: "list[Command]") -> None:
        """Pass on what the source sent."""
        await self._destination.send(data)

    async def silence(self) -> bool:
        """Wait on: here, nobody minds silence."""
        return True

    async def source_ended(self) -> None:
        """Carry the source's end over."""
        await self._destination.finish()

    async def talk(self) -> None:
        """Pass on what the destination says, to its end."""
        buffer = memoryview(bytearray(RETURN_BUFFER))
        while length := await self._destination.receive(buffer):
            await self._source.send(buffer[:length])
            self.listener.listen(buffer[:length])
        self.ended = True
        await self._source.finish()


class Alone:
    """No destination behind the recorder: it answers as one that in the end does not take the guest.

    Attributes:
        over: Whether the stream was complete, and the source was told to keep its guest.
    """

    def __init__(self, source: "Connection", follower: "Follower", *, allow_no_return_path: bool, wait: float) -> None:
        """Take the stream that a follower reads along with; see `RecordConfig`."""
        self._source = source
        self._follower = follower
        self._allow_no_return_path = allow_no_return_path
        self._wait = wait
        self._silences = 0
        self.over = False

    @property
    def patience(self) -> float:
        """Seconds that the source may say nothing before `silence` is called."""
        if self.over:
            return _GOODBYE
        unsure = self._follower.awaiting_vmdesc or self._follower.problem is not None
        return self._wait if unsure else float("inf")

    async def take(self, _data: "Raw", commands: "list[Command]") -> None:
        """Take what the source sent, and answer it."""
        self._silences = 0
        self._check()
        for command in commands:
            if command.command is CommandType.PING and self._follower.return_path:
                await self._say(pong(command.payload))
        await self._let_go()

    def _check(self) -> None:
        """Refuse what could lose the guest; what decides that comes before the first section."""
        follower = self._follower
        if follower.postcopy_advised:
            raise RefusedError(
                "the source may go over to postcopy, and would give up its guest to a file; it is recorded only with "
                "--connect, or with the capability postcopy-ram off"
            )
        if follower.problem is not None and not follower.begun:
            # It may announce what no source can take its guest back from.
            raise RefusedError(
                f"{follower.problem.without_advice}: what is not understood up to its first section is recorded only "
                "with --connect, because without it the source might lose its guest"
            )
        if follower.begun and not follower.return_path and not self._allow_no_return_path:
            raise RefusedError(NO_RETURN_PATH)

    async def silence(self) -> bool:
        """Hear that the source says nothing; return whether to wait on."""
        if self.over:
            return False
        self._silences += 1
        last = self._silences == _MOST_WAITS
        self._follower.vmdesc_overdue(last_word=last)
        await self._let_go()
        if last and not self.over:
            raise PeerError("source", "sends no more")
        return True

    async def source_ended(self) -> None:
        """Hear that the source sends no more."""
        await self._let_go()

    async def talk(self) -> None:
        """Say nothing that is no answer."""

    async def _let_go(self) -> None:
        """Once the stream is complete, have the source keep its guest; should it send more, that is heard, too."""
        if self.over or not self._follower.complete:
            return
        self.over = True
        if self._follower.return_path:
            await let_wait(self._follower.machine)
            await self._say(shut(_DID_NOT_TAKE_IT))
            await self._source.finish()

    async def _say(self, message: bytes) -> None:
        await self._source.send(message)
