"""CONFIGURATION: the machine's type, and subsections that say what the rest of the stream is like.

Source: QEMU `migration/savevm.c` (`vmstate_configuration`), `hw/arm/virt.c`.
"""

from typing import Final

from formats.errors import MalformedStreamError, UnsupportedFeatureError
from formats.files.mapped_ram import CAPABILITY as MAPPED_RAM
from formats.frame.records import CONFIGURATION, CONFIGURATION_SUBSECTIONS, SUBSECTION_HEADER, RecordType, read
from formats.iterable.sections import DEFAULT_PAGE_BITS
from formats.stream.events import Configuration
from formats.stream.refusals import REFUSED_CAPABILITIES

_SECTION: Final = "configuration"
_PAGE_BITS_OF: Final = {"virt-2.6": 10, "virt-2.7": 10}
"""Arm machines with pages of 1 KiB, the least that Arm has, which go without saying (QEMU `hw/arm/virt.c`:
`virt_machine_2_7_options`; `migration/savevm.c`: `vmstate_target_page_bits_needed`)."""


def true_page_bits(configuration: Configuration) -> int:
    """Return the bits of a target page's size, said or not."""
    return configuration.page_bits or _PAGE_BITS_OF.get(configuration.machine, DEFAULT_PAGE_BITS)


def read_configuration(data: memoryview, offset: int, *, take_mapped_ram: bool) -> Configuration | None:
    """Read the record at the start of `data`.

    Args:
        data: The bytes that are there so far; one more than the record's has to be, which shows that it is all there.
        offset: Where `data` begins in the stream.
        take_mapped_ram: Whether the stream is in a file, where mapped-ram has its place.

    Returns:
        The record; None when `data` ends before it is known to be complete.

    Raises:
        MalformedStreamError: No QEMU says so.
        UnsupportedFeatureError: It says what is not known, or is refused.
    """
    found = read(CONFIGURATION, data, offset)
    if found is None:
        return None
    configuration, size = found
    values: dict[str, object] = {}
    while True:
        if size >= len(data):
            return None
        if data[size] != RecordType.SUBSECTION:
            break
        header = read(SUBSECTION_HEADER, data[size:], offset + size)
        if header is None:
            return None
        name = header[0].name
        schema = CONFIGURATION_SUBSECTIONS.get(name)
        if schema is None:
            raise UnsupportedFeatureError(
                f"configuration subsection {name!r} is not known", offset=offset + size, section=_SECTION
            )
        body = read(schema, data[size + header[1] :], offset + size + header[1])
        if body is None:
            return None
        values[name] = body[0]
        size += header[1] + body[1]
    return _checked(configuration.machine, values, data[:size], offset, take_mapped_ram)


def _checked(
    machine: bytes, values: dict[str, object], raw: memoryview, offset: int, take_mapped_ram: bool
) -> Configuration:
    page_bits = values.get("configuration/target-page-bits")
    names = values.get("configuration/capabilities", ())
    uuid = values.get("configuration/uuid")
    assert isinstance(page_bits, int | None)
    assert isinstance(uuid, bytes | None)
    assert isinstance(names, list | tuple)
    if page_bits is not None and not 10 <= page_bits <= 16:
        raise MalformedStreamError(f"target pages of {page_bits} bits", offset=offset, section=_SECTION)
    for name in names:
        if name in REFUSED_CAPABILITIES and not (name == MAPPED_RAM and take_mapped_ram):
            raise UnsupportedFeatureError(
                f"capability {name} is not supported", offset=offset, advice=REFUSED_CAPABILITIES[name]
            )
    return Configuration(
        offset,
        raw,
        machine=machine.decode("ascii", "backslashreplace"),
        page_bits=page_bits,
        capabilities=tuple(str(name) for name in names),
        uuid=uuid,
    )
