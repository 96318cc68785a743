"""The wire formats of a QEMU migration: bytes in, events out; no socket, no file, no clock, no policy.

What stands in `__all__` is for other programs, see docs/library.md; all else may change without notice. Nothing is
loaded before it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from formats.errors import (
        DeviceStateTooLargeError,
        EncryptedStreamError,
        ForeignStreamError,
        FormatError,
        MalformedStreamError,
        RefusedStreamError,
        TruncatedStreamError,
        UnknownCpuVersionError,
        UnlocatableSectionError,
        UnsupportedFeatureError,
    )
    from formats.frame.event import NEED_DATA, Event
    from formats.reading import Section, Skipped, Vcpu, read_events, read_sections, read_vcpus
    from formats.stream.events import (
        Command,
        Configuration,
        FileHeader,
        IterableData,
        LateVmdesc,
        MappedPages,
        PostcopyData,
        SectionBegin,
        SectionFooter,
        TrailingBytes,
    )
    from formats.stream.parser import StreamParser
    from formats.vmstate.device_state import DeviceState
    from formats.vmstate.fields import DecodedField

__all__ = [
    "NEED_DATA",
    "Command",
    "Configuration",
    "DecodedField",
    "DeviceState",
    "DeviceStateTooLargeError",
    "EncryptedStreamError",
    "Event",
    "FileHeader",
    "ForeignStreamError",
    "FormatError",
    "IterableData",
    "LateVmdesc",
    "MalformedStreamError",
    "MappedPages",
    "PostcopyData",
    "RefusedStreamError",
    "Section",
    "SectionBegin",
    "SectionFooter",
    "Skipped",
    "StreamParser",
    "TrailingBytes",
    "TruncatedStreamError",
    "UnknownCpuVersionError",
    "UnlocatableSectionError",
    "UnsupportedFeatureError",
    "Vcpu",
    "read_events",
    "read_sections",
    "read_vcpus",
]

_ROOMS = {
    "formats.errors": {name for name in __all__ if name.endswith("Error")},
    "formats.frame.event": {"NEED_DATA", "Event"},
    "formats.reading": {"Section", "Skipped", "Vcpu", "read_events", "read_sections", "read_vcpus"},
    "formats.stream.parser": {"StreamParser"},
    "formats.vmstate.device_state": {"DeviceState"},
    "formats.vmstate.fields": {"DecodedField"},
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = next((room for room, names in _ROOMS.items() if name in names), "formats.stream.events")
    return getattr(import_module(room), name)


def __dir__() -> list[str]:
    return sorted(__all__)
