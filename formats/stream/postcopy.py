"""Going over to postcopy: what announces it, the package with the device state, and getting past a package.

Source: QEMU `migration/savevm.c` (`qemu_savevm_send_postcopy_advise`, `qemu_savevm_send_packaged`).
"""

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, Final

from formats.errors import DeviceStateTooLargeError, MalformedStreamError
from formats.frame.records import CommandType
from formats.stream.events import AnyEvent, Command, PostcopyData
from formats.stream.package import SECTION, open_package

if TYPE_CHECKING:
    from collections.abc import Sequence

    from formats.stream.intake import Intake
    from formats.vmstate.locators import EarlySection

_ADVISE: Final = Struct(">QQ")
_LENGTH: Final = Struct(">I")
_PACKAGED_SIZE: Final = 5 + _LENGTH.size


class Postcopy:
    """How far a stream is on its way to postcopy.

    Attributes:
        advised: Whether the source may go over to postcopy.
        switching: Whether it is about to: its guest has stopped.
        unpacked: The events of the package that are still to be returned.
    """

    def __init__(self, intake: "Intake", limit: int) -> None:
        """Make it for one stream; `limit` is the size of a package at most, in bytes."""
        self.advised = False
        self.switching = False
        self.unpacked: deque[AnyEvent] = deque()
        self._in = intake
        self._limit = limit
        self._package_length = 0
        self._opened = False
        self._to_skip = 0

    def advise(self, payload: bytes) -> int | None:
        """Note that postcopy may come; return the source's page sizes, or-ed, where they are said.

        The payload: be64 sizes of all host pages or-ed, be64 target page size; for dirty bitmaps alone, nothing.

        Raises:
            MalformedStreamError: It is neither.
        """
        if len(payload) not in (0, _ADVISE.size):
            raise MalformedStreamError(f"POSTCOPY_ADVISE of {len(payload)} bytes", offset=self._in.offset)
        self.advised = True
        if not payload:
            return None
        page_sizes: int = _ADVISE.unpack(payload)[0]
        return page_sizes

    def begin(self, command: CommandType, payload: bytes) -> None:
        """Take the command that goes over to postcopy: POSTCOPY_RAM_DISCARD, or PACKAGED with a be32 length.

        Raises:
            MalformedStreamError: Postcopy was not announced, or the length is none.
            DeviceStateTooLargeError: The package is larger than may be held.
        """
        if not self.advised:
            raise MalformedStreamError(f"{command.name} without POSTCOPY_ADVISE", offset=self._in.offset)
        self.switching = True
        if command is not CommandType.PACKAGED:
            return
        if len(payload) != _LENGTH.size:
            raise MalformedStreamError(f"PACKAGED with {len(payload)} bytes of length", offset=self._in.offset)
        (self._package_length,) = _LENGTH.unpack(payload)
        if self._package_length > self._limit:
            raise DeviceStateTooLargeError(
                f"it has {self._package_length} bytes, and may have {self._limit}",
                offset=self._in.offset,
                section=SECTION,
                advice="raise --device-state-limit if the guest's devices are known to have that much",
            )

    def open_package(self, early: "Sequence[EarlySection]") -> Command | None:
        """Open the package once it is all there; its command is the first thing at hand.

        Returns:
            The command; what follows it is in `unpacked`. None when the package is not all there.
        """
        if len(self._in.data) < _PACKAGED_SIZE + self._package_length:
            return None
        offset, raw = self._in.take(_PACKAGED_SIZE)
        announced = Command(offset, raw, command=CommandType.PACKAGED, payload=bytes(raw[-_LENGTH.size :]))
        start, blob = self._in.take(self._package_length)
        self._opened = True
        self.unpacked.extend(open_package(bytes(blob), early, start).events(start))
        return announced

    def abandon_package(self) -> None:
        """Have the package skipped, whatever was wrong with it."""
        self.unpacked.clear()
        if not self._opened:
            self._to_skip = _PACKAGED_SIZE + self._package_length

    def skipped(self) -> PostcopyData | None:
        """Return the next stretch of an abandoned package; None when nothing is to be skipped, or at hand."""
        length = min(self._to_skip, len(self._in.data))
        if not length:
            return None
        self._to_skip -= length
        return PostcopyData(*self._in.take(length))
