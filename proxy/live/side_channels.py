"""The connections beside a migration's main one: multifd channels, and the one of postcopy-preempt."""

from typing import TYPE_CHECKING

from proxy.errors import PeerError, ProxyError
from proxy.live.channel import Channel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import trio

    from proxy.net.connection import Connection
    from proxy.report.report import Report

    Dial = Callable[[], Awaitable[Connection]]


class SideChannels:
    """Carries the channels of one migration; one that is lost ends it.

    Attributes:
        has_preempt: Whether there is a postcopy-preempt channel.
    """

    def __init__(self, all_sent: "trio.Event", report: "Report", lose: "Callable[[PeerError], None]") -> None:
        """Make it for one migration.

        Args:
            all_sent: Set when the main channel has sent all.
            report: Counts the channels.
            lose: Ends the migration.
        """
        self.has_preempt = False
        self._preempt: Channel | None = None
        self._all_sent = all_sent
        self._report = report
        self._lose = lose
        self._channels: set[Channel] = set()
        self._carried = 0

    @property
    def preempt_reached(self) -> bool:
        """Whether the postcopy-preempt channel has come to the destination, too."""
        return self.has_preempt and self._preempt is not None and self._preempt.dialled

    @property
    def carried(self) -> int:
        """Bytes that have gone on to the destination so far."""
        return self._carried + sum(channel.bytes for channel in tuple(self._channels))  # other threads ask, too

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
                self._lose(PeerError(error.peer, f"lost a multifd channel: {error}"))
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
        """Carry the postcopy-preempt channel to its end, `opening` first; return whether the destination took it."""
        channel = Channel(dial, source, self._all_sent)
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
        for channel in self._channels:
            channel.end(clean=clean)


def _peer_of(error: ProxyError) -> str:
    return error.peer if isinstance(error, PeerError) else "destination"
