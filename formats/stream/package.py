"""The package of a postcopy migration: the device state, sent as one blob of known length when the guest has stopped.

    COMMAND PACKAGED, its payload the be32 length of the blob; then the blob:
    COMMAND LISTEN, every device section with its footer, up to two COMMAND PING, COMMAND RUN

The answer to the second PING, which QEMU 11.1 sends, tells its source that the destination has loaded the devices.
There is no end of file and no vmdesc in it, so footers and schemas locate its sections.
Source: QEMU `migration/migration.c` (`postcopy_start`), `migration/savevm.c` (`qemu_savevm_send_packaged`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from formats.errors import MalformedStreamError, UnlocatableSectionError
from formats.frame.records import COMMAND, CommandType, RecordType
from formats.stream.events import AnyEvent, Command
from formats.vmstate.device_state import DeviceState
from formats.vmstate.footers import locate_by_footers
from formats.vmstate.locators import FOOTER_SIZE, DeviceSection

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from formats.frame.event import Raw
    from formats.vmstate.locators import EarlySection

SECTION: Final = "package"

_LISTEN: Final = COMMAND.build({"type": RecordType.COMMAND, "command": CommandType.POSTCOPY_LISTEN, "payload": b""})
_RUN: Final = COMMAND.build({"type": RecordType.COMMAND, "command": CommandType.POSTCOPY_RUN, "payload": b""})
_PING: Final = COMMAND.build({"type": RecordType.COMMAND, "command": CommandType.PING, "payload": bytes(4)})[:5]
_PING_SIZE: Final = 9
_MOST_PINGS: Final = 2
_RECOVERY: Final = frozenset({CommandType.RECV_BITMAP, CommandType.POSTCOPY_RESUME})
_ADVICE: Final = "migrate without postcopy: turn the capability postcopy-ram off"


@dataclass(frozen=True, slots=True)
class Package:
    """A package taken apart.

    Attributes:
        listen: COMMAND LISTEN.
        held: The device sections; their positions count from its start.
        sections: The sections in the order of the wire.
        pings: COMMAND PING, none, one or two.
        run: COMMAND RUN, after which the destination runs the guest.
    """

    listen: bytes
    held: bytearray
    sections: tuple[DeviceSection, ...]
    pings: tuple[bytes, ...]
    run: bytes

    def events(self, offset: int) -> "Iterator[AnyEvent]":
        """Yield its parts, in order, as events; `offset` is where it begins in the stream."""
        yield Command(offset, self.listen, command=CommandType.POSTCOPY_LISTEN, payload=b"")
        offset += len(self.listen)
        yield DeviceState(
            offset, self.held, held=self.held, sections=self.sections, vmdesc=None, early=False, packaged=True
        )
        offset += len(self.held)
        for ping in self.pings:
            yield Command(offset, ping, command=CommandType.PING, payload=ping[len(_PING) :])
            offset += len(ping)
        yield Command(offset, self.run, command=CommandType.POSTCOPY_RUN, payload=b"")


def is_recovery(opening: "Raw") -> bool:
    """Tell whether a connection that begins so takes a paused postcopy migration up again.

    It has no file header; it begins with COMMAND RECV_BITMAP, for each RAM block, or RESUME. Source: QEMU
    `migration/migration.c` (`postcopy_do_resume`).
    """
    command = int.from_bytes(bytes(opening[1:3]), "big")
    return len(opening) > 2 and opening[0] == RecordType.COMMAND and command in _RECOVERY


def open_package(blob: bytes, early: "Sequence[EarlySection]", offset: int) -> Package:
    """Take a package apart.

    Args:
        blob: All of it, after the command that announced it.
        early: Device sections that went before the iterable ones.
        offset: Where the blob begins in the stream; used in errors only.

    Raises:
        MalformedStreamError: It does not begin or end as a package does.
        UnlocatableSectionError: Its sections cannot be told apart for certain.
    """
    if not blob.startswith(_LISTEN) or not blob.endswith(_RUN) or len(blob) < len(_LISTEN) + FOOTER_SIZE + len(_RUN):
        raise MalformedStreamError(
            "it does not begin with POSTCOPY_LISTEN and end with POSTCOPY_RUN", offset=offset, section=SECTION
        )
    end = len(blob) - len(_RUN)
    pings: tuple[bytes, ...] = ()
    while len(pings) < _MOST_PINGS and _is_ping(blob[end - _PING_SIZE : end]):
        end -= _PING_SIZE
        pings = (blob[end : end + _PING_SIZE], *pings)
    held = bytearray(blob[len(_LISTEN) : end])
    base = offset + len(_LISTEN)
    if held[-FOOTER_SIZE] != RecordType.SECTION_FOOTER:
        raise MalformedStreamError("its last section has no footer", offset=offset + end, section=SECTION)
    if early:
        raise UnlocatableSectionError(
            "it stands before RAM, and a postcopy migration has no vmdesc to check its length by",
            offset=early[0].offset + early[0].section.start,
            section=early[0].section.label,
            advice=_ADVICE,
        )
    sections = locate_by_footers(held, len(held), base)
    if sections is None:
        raise UnlocatableSectionError("no footers cut it into sections", offset=base, section=SECTION, advice=_ADVICE)
    return Package(blob[: len(_LISTEN)], held, tuple(sections), pings, blob[-len(_RUN) :])


def _is_ping(raw: bytes) -> bool:
    """Tell whether these are a PING; the end of the last section is not, as it ends with a footer of five bytes."""
    return len(raw) == _PING_SIZE and raw.startswith(_PING)
