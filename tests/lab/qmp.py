"""A small trio-native QMP client.

LabError
├── QmpError        QEMU answered a command with an error
└── QmpClosedError  QEMU closed the connection: it exited or died
"""

from __future__ import annotations

import json
from typing import Any

import trio

_RECEIVE = 65536


class LabError(Exception):
    """Something in the lab went wrong."""


class QmpError(LabError):
    """QEMU refused a command.

    Attributes:
        error_class: QMP's class, such as "GenericError".
        desc: QEMU's own words.
    """

    def __init__(self, command: str, error_class: str, desc: str) -> None:
        super().__init__(f"{command}: {error_class}: {desc}")
        self.error_class = error_class
        self.desc = desc


class QmpClosedError(LabError):
    """The QMP connection ended."""


class QmpClient:
    """One QMP connection; commands from several tasks take turns.

    Replies are matched by id, so that a command given up half-way (a timeout) does not confuse the next one.

    Attributes:
        events: every event seen so far, oldest first. Events are read along with replies, not in between.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self.events: list[dict[str, Any]] = []
        self._stream = stream
        self._turn = trio.Lock()
        self._unread = bytearray()
        self._last_id = 0

    async def negotiate(self) -> None:
        """Read the greeting and leave negotiation mode."""
        greeting = await self._read_message()
        if "QMP" not in greeting:
            raise LabError(f"not a QMP greeting: {greeting}")
        await self.execute("qmp_capabilities")

    async def execute(self, command: str, **arguments: Any) -> Any:  # noqa: ANN401 - any JSON, in both directions
        """Run a command and return what it returns.

        Args:
            command: the QMP command.
            **arguments: its arguments; an underscore stands for a hyphen.

        Raises:
            QmpError: QEMU answered with an error.
            QmpClosedError: the connection ended before the answer.
        """
        async with self._turn:
            self._last_id += 1
            number = self._last_id
            request = {
                "execute": command,
                "id": number,
                "arguments": {name.replace("_", "-"): value for name, value in arguments.items()},
            }
            try:
                await self._stream.send_all(json.dumps(request).encode() + b"\n")
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise QmpClosedError(f"QMP connection ended before {command}") from error
            reply = await self._read_reply(number)
        if "error" in reply:
            raise QmpError(command, reply["error"]["class"], reply["error"]["desc"])
        return reply["return"]

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    async def _read_reply(self, number: int) -> dict[str, Any]:
        while True:
            message = await self._read_message()
            if "event" in message:
                self.events.append(message)
            elif message.get("id") == number:
                return message

    async def _read_message(self) -> dict[str, Any]:
        while (end := self._unread.find(b"\n")) < 0:
            try:
                data = await self._stream.receive_some(_RECEIVE)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise QmpClosedError("QMP connection broke") from error
            if not data:
                raise QmpClosedError("QMP connection ended")
            self._unread += data
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        message: dict[str, Any] = json.loads(line)
        return message
