"""The connections beside a migration's main one: multifd channels, and the one of postcopy-preempt."""

from typing import TYPE_CHECKING, Final

import trio

from proxy.errors import PeerError, ProxyError
from proxy.live.channel import Channel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.net.connection import Connection
    from proxy.report.report import Report
    from proxy.rewriter.progress import Progress

    Dial = Callable[[], Awaitable[Connection]]

_LAST_WORD: Final = 5.0
"""Seconds that are left to the main connection when a channel breaks after all was sent."""


class SideChannels:
    """Carries the channels of one migration; one that is lost ends it.

    Attributes:
        has_preempt: Whether there is a postcopy-preempt channel.
    """

    def __init__(
        self, all_sent: trio.Event, progress: "Progress", report: "Report", lose: "Callable[[PeerError], None]"
    ) -> None:
        """Make it for one migration.

        Args:
            all_sent: Set when the main channel has sent all.
            progress: How far the main channel has come.
            report: Counts the channels.
            lose: Ends the migration.
        """
        self.has_preempt = False
        self._preempt: Channel | None = None
        self._guest: bytes | None = None
        self._all_sent = all_sent
        self._progress = progress
        self._report = report
        self._lose = lose
        self._channels: set[Channel] = set()
        self._carried = 0
        self._over = trio.Event()

    @property
    def preempt_reached(self) -> bool:
        """Whether the postcopy-preempt channel has come to the destination, too."""
        return self.has_preempt and self._preempt is not None and self._preempt.dialled

    @property
    def carried(self) -> int:
        """Bytes that have gone on to the destination so far."""
        return self._carried + sum(channel.bytes for channel in tuple(self._channels))  # other threads ask, too

    def want_multifd(self, guest: bytes) -> bool:
        """Tell whether a multifd channel that names this guest, by its UUID, may be one of them, and no stranger."""
        return self._guest in (None, guest) and not self._progress.brings_pages

    def name_guest(self, guest: bytes) -> None:
        """Take note of the guest that the first multifd channel names."""
        self._guest = guest
        self._report.known_uuid(guest)

    async def carry_multifd(self, source: "Connection", opening: bytes, dial: "Dial") -> None:
        """Carry a multifd channel to its end, `opening` first; if it is lost, so is the migration.

        A destination that has all its channels listens no more: what it does not take then was none of them.
        """
        channel = Channel(dial, source, self._all_sent)
        self._channels.add(channel)
        self._report.channels += 1
        try:
            await channel.run(opening)
        except PeerError as error:
            if channel.dialled or not any(other.dialled for other in self._channels):
                await self._lost(PeerError(error.peer, f"lost a multifd channel: {error}"), channel)
            else:
                self._report.channels -= 1
        except ProxyError as error:
            self._lose(PeerError("destination", f"lost a multifd channel: {error}"))
        except Exception:
            self._lose(PeerError("destination", "lost a multifd channel"))
            raise
        finally:
            self._end(channel)

    async def carry_preempt(self, source: "Connection", opening: bytes, dial: "Dial") -> bool:
        """Carry the postcopy-preempt channel to its end, `opening` first; return whether the destination took it.

        It lasts as long as the migration: pages come on it when the device state has long been sent. One that ends
        before is lost, so that both QEMUs pause; neither notices by itself.
        """
        channel = Channel(dial, source, self._over)
        self._channels.add(channel)
        self.has_preempt, self._preempt = True, channel
        self._report.channels += 1
        try:
            await channel.run(opening)
        except ProxyError as error:
            if channel.dialled:
                self._lose(PeerError(_peer_of(error), f"lost the preempt channel: {error}"))
        except Exception:
            self._lose(PeerError("destination", "lost the preempt channel"))
            raise
        finally:
            self._end(channel)
            if not channel.dialled:
                self.has_preempt = False
                self._report.channels -= 1
        return channel.dialled

    async def _lost(self, error: PeerError, channel: Channel) -> None:
        """End the migration for a channel; when all was sent, its QEMUs may say on the main one first what came of it.

        The destination may have its guest by then, though a channel of its, or a stranger's, breaks.
        """
        if self._all_sent.is_set() and channel.dialled:
            with trio.move_on_after(_LAST_WORD):
                await self._over.wait()
        if not self._over.is_set():
            self._lose(error)

    def _end(self, channel: Channel) -> None:
        self._channels.discard(channel)
        self._carried += channel.bytes

    def cut(self) -> None:
        """Cut all of them, as a pause in postcopy does; they come anew with the recovery."""
        for channel in self._channels:
            channel.cut()
        self.has_preempt = False

    def swallow(self) -> None:
        """Take what their sources send, and pass nothing on."""
        for channel in self._channels:
            channel.swallow()

    def end(self, *, clean: bool) -> None:
        """End all of them, cleanly or with a reset."""
        self._over.set()
        for channel in self._channels:
            channel.end(clean=clean)


def _peer_of(error: ProxyError) -> str:
    return error.peer if isinstance(error, PeerError) else "destination"
