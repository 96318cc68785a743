"""A located section, field by field, as the vmdesc describes it; for a `cpu` without one, as its schema does."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from formats.vmstate import cpu_section

if TYPE_CHECKING:
    from formats.vmstate.locators import DeviceSection
    from formats.vmstate.vmdesc import Layout

Value = int | bool | bytes | list[Any]


@dataclass(frozen=True, slots=True)
class DecodedField:
    """One field that is no struct, or one header of a subsection.

    Attributes:
        path: The names that lead to it, outermost first; subsections stand by their vmsd's name.
        type: QEMU's name of its type; `subsection` for a header.
        offset: Where it begins, in bytes from the section's type byte.
        length: Bytes.
        value: What it holds: a number, a list of numbers, or bytes where QEMU encodes it itself.
    """

    path: tuple[str, ...]
    type: str
    offset: int
    length: int
    value: Value


def decode_section(held: bytes | bytearray, section: "DeviceSection") -> Iterator[DecodedField]:
    """Yield the fields of a section in the order of the wire; header, fields and footer fill it without gap.

    A section without a layout, which has no vmdesc, is one field of bytes, but for an arm64 `cpu`.

    Args:
        held: The device state that the section is in.
        section: Its bounds in it.
    """
    body = bytes(held[section.body : section.body_end])
    base = section.body - section.start
    yield DecodedField(("header",), "header", 0, base, bytes(held[section.start : section.body]))
    if section.layout is not None:
        yield from _layout(section.layout, body, 0, base, ())
    elif section.name == cpu_section.IDSTR and cpu_section.cpregs_end(memoryview(body), 0, len(body)) is not None:
        yield from _cpu(body, base)
    elif body:
        yield DecodedField(("body",), "buffer", base, len(body), body)
    footer = bytes(held[section.body_end : section.end])
    yield DecodedField(("footer",), "footer", section.body_end - section.start, len(footer), footer)


def _layout(layout: "Layout", body: bytes, position: int, base: int, path: tuple[str, ...]) -> Iterator[DecodedField]:
    for field in layout.fields:
        if field.struct is None:
            end = position + field.length
            value = field.schema.parse(body[position:end])
            yield DecodedField((*path, field.name), field.type, base + position, field.length, _plain(value))
            position = end
            continue
        for index in range(1 if field.count is None else field.count):
            name = field.name if field.count is None else f"{field.name}[{index}]"
            yield from _layout(field.struct, body, position, base, (*path, name))
            position += field.size
    for sub in layout.subsections:
        header = len(sub.subsection_header)
        inner = (*path, sub.name or "")
        yield DecodedField(inner, "subsection", base + position, header, body[position : position + header])
        yield from _layout(sub, body, position + header, base, inner)
        position += header + sub.size


def _cpu(body: bytes, base: int) -> Iterator[DecodedField]:
    """Decode an arm64 `cpu` by the schema of version 22."""
    parsed = cpu_section.CPU.parse(body)
    position = 0
    for subcon in cpu_section.CPU.subcons:
        name = subcon.name or ""
        value = parsed[name]
        length = len(subcon.build(value, **parsed))
        yield DecodedField((name,), "version 22", base + position, length, _plain(value))
        position += length
    if position < len(body):
        yield DecodedField(("subsections",), "buffer", base + position, len(body) - position, body[position:])


def _plain(value: Any) -> Value:  # noqa: ANN401
    return value if isinstance(value, int | bytes) else list(value)
