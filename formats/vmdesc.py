"""The vmdesc: JSON at the stream's end that says, field by field, what each device section holds.

It is the one place where the length of a device section stands: a section's body is its fields, each of `size` bytes
(times `array_len`), then its subsections, each headed by 05, u8 length + name, be32 version.
Source: QEMU `migration/vmstate.c` (`vmstate_save_state_v`, `vmstate_subsection_save`, `vmsd_desc_field_start`).
"""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from construct import (
    Array,
    Bytes,
    Const,
    Flag,
    Int8sb,
    Int8ub,
    Int16sb,
    Int16ub,
    Int32sb,
    Int32ub,
    Int64sb,
    Int64ub,
    Struct,
)

from formats.errors import MalformedStreamError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from construct import Construct

_LEAVES: Final[dict[str, "Construct[Any, Any]"]] = {
    "uint8": Int8ub,
    "uint16": Int16ub,
    "uint32": Int32ub,
    "uint64": Int64ub,
    "int8": Int8sb,
    "int16": Int16sb,
    "int32": Int32sb,
    "int64": Int64sb,
    "bool": Flag,
    "timer": Int64ub,
}
_LONGEST_NAME: Final = 255
"""Characters of a name that has a length byte on the wire."""
_DEEPEST: Final = 64
"""Levels of structs and subsections; QEMU's own nest no deeper than ten."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a device, or an array of equal ones.

    Attributes:
        name: The field's name, with its index where QEMU lists the elements of an array one by one.
        type: QEMU's name of its type, such as `uint32`, `buffer` or `struct`.
        size: Bytes of one element.
        count: How many elements; None when it is no array.
        struct: The layout of one element, when it is a struct.
    """

    name: str
    type: str
    size: int
    count: int | None
    struct: "Layout | None"

    @property
    def length(self) -> int:
        """Bytes of all the elements."""
        return self.size * (1 if self.count is None else self.count)

    @property
    def schema(self) -> "Construct[Any, Any]":
        """The field as a construct schema of `length` bytes; types that QEMU encodes itself stay bytes."""
        if self.struct is not None:
            element = self.struct.schema
        else:
            element = _LEAVES.get(self.type.split(" ")[0], Bytes(self.size))
            if element.sizeof() != self.size:
                element = Bytes(self.size)
        return element if self.count is None else Array(self.count, element)


@dataclass(frozen=True)
class Layout:
    """What a device, a struct or a subsection is made of.

    Attributes:
        name: The vmsd's name; None for devices that save themselves in the old style, as one buffer.
        version: The vmsd's version; None with the name.
        fields: The fields in the order of the wire.
        subsections: The subsections that are there, in the order of the wire.
    """

    name: str | None
    version: int | None
    fields: tuple[Field, ...]
    subsections: "tuple[Layout, ...]"

    @cached_property
    def size(self) -> int:
        """Bytes of the fields and of the subsections with their headers."""
        return sum(field.length for field in self.fields) + sum(
            len(sub.subsection_header) + sub.size for sub in self.subsections
        )

    @cached_property
    def subsection_header(self) -> bytes:
        """The bytes that go before this layout where it is a subsection."""
        name = (self.name or "").encode("ascii")
        return b"\x05" + bytes([len(name)]) + name + (self.version or 0).to_bytes(4, "big")

    @cached_property
    def schema(self) -> "Construct[Any, Any]":
        """The layout as a construct schema, which parses exactly `size` bytes; types QEMU encodes itself stay bytes."""
        members = [field.name / field.schema for field in self.fields]
        members += [
            f"{sub.name}" / Struct("header" / Const(sub.subsection_header), "state" / sub.schema)
            for sub in self.subsections
        ]
        return Struct(*members)

    def headers(self, start: int = 0) -> "Iterator[tuple[int, bytes]]":
        """Yield where each subsection header stands, counted from the layout's start, and what stands there."""
        position = start
        for field in self.fields:
            if field.struct is not None and field.struct.has_subsections:
                for index in range(1 if field.count is None else field.count):
                    yield from field.struct.headers(position + index * field.size)
            position += field.length
        for sub in self.subsections:
            yield position, sub.subsection_header
            position += len(sub.subsection_header)
            yield from sub.headers(position)
            position += sub.size

    @cached_property
    def has_subsections(self) -> bool:
        """Whether a subsection is in it, at any depth."""
        return bool(self.subsections) or any(
            field.struct is not None and field.struct.has_subsections for field in self.fields
        )

    def field(self, name: str) -> tuple[int, Field] | None:
        """Find a field of this layout by name; return its offset in bytes from the layout's start, and the field."""
        position = 0
        for field in self.fields:
            if field.name == name:
                return position, field
            position += field.length
        return None


@dataclass(frozen=True, slots=True)
class DeviceDescription:
    """One device section: the idstr and instance id of its header, and the layout of its body."""

    name: str
    instance_id: int
    layout: Layout


@dataclass(frozen=True, slots=True)
class Vmdesc:
    """The whole description: the devices in the order of their sections."""

    devices: tuple[DeviceDescription, ...]


def parse_vmdesc(text: bytes, offset: int) -> Vmdesc:
    """Parse the JSON of a vmdesc.

    Args:
        text: The JSON, UTF-8.
        offset: Where it begins in the stream; used in errors only.

    Raises:
        MalformedStreamError: It is no JSON, or does not describe devices.
    """
    try:
        devices = json.loads(str(text, "utf-8"))["devices"]
        return Vmdesc(
            tuple(
                DeviceDescription(_text(device["name"]), _count(device["instance_id"]), _layout(device, 0))
                for device in devices
            )
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MalformedStreamError(
            f"the vmdesc does not describe devices ({error!r})", offset=offset, section="vmdesc"
        ) from error


def _layout(description: Any, depth: int) -> Layout:
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    name = description.get("vmsd_name")
    version = description.get("version")
    return Layout(
        name=None if name is None else _text(name),
        version=None if version is None else _count(version),
        fields=tuple(_field(field, depth + 1) for field in description.get("fields", ())),
        subsections=tuple(_layout(sub, depth + 1) for sub in description.get("subsections", ())),
    )


def _field(description: Any, depth: int) -> Field:
    name = _text(description["name"])
    if "index" in description:
        name = f"{name}[{_count(description['index'])}]"
    struct = _layout(description["struct"], depth) if "struct" in description else None
    count = _count(description["array_len"]) if "array_len" in description else None
    size = _count(description["size"])
    if struct is not None and struct.size != size:
        raise ValueError(f"struct {name!r} has {struct.size} bytes of fields and a size of {size}")
    return Field(name, _text(description["type"]), size, count, struct)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isascii() or len(value) > _LONGEST_NAME:
        raise ValueError(f"{value!r} is no name")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 32:
        raise ValueError(f"{value!r} is no count")
    return value
