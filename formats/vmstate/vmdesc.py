"""The vmdesc: JSON at the stream's end that says, field by field, what each device section holds.

It is the one place where the length of a device section stands: a section's body is its fields, each of `size` bytes
(times `array_len`), then its subsections, each headed by 05, u8 length + name, be32 version.
Source: QEMU `migration/vmstate.c` (`vmstate_save_state_v`, `vmstate_subsection_save`, `vmsd_desc_field_start`).
"""

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, TypeAlias, TypeVar

import msgspec
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

    @cached_property
    def headers(self) -> tuple[tuple[int, bytes], ...]:
        """Where each subsection header stands, from the layout's start, and what stands there."""
        return tuple(self._find_headers())

    def _find_headers(self) -> "Iterator[tuple[int, bytes]]":
        position = 0
        for field in self.fields:
            if field.struct is not None and field.struct.has_subsections:
                for index in range(1 if field.count is None else field.count):
                    yield from _shifted(field.struct.headers, position + index * field.size)
            position += field.length
        for sub in self.subsections:
            yield position, sub.subsection_header
            position += len(sub.subsection_header)
            yield from _shifted(sub.headers, position)
            position += sub.size

    @cached_property
    def has_subsections(self) -> bool:
        """Whether a subsection is in it, at any depth."""
        return bool(self.subsections) or any(
            field.struct is not None and field.struct.has_subsections for field in self.fields
        )

    def field(self, name: str) -> tuple[int, Field] | None:
        """Find a field of this layout by name; return its offset in bytes from the layout's start, and the field."""
        return self._found.get(name)

    @cached_property
    def _found(self) -> dict[str, tuple[int, Field]]:
        found: dict[str, tuple[int, Field]] = {}
        position = 0
        for field in self.fields:
            found.setdefault(field.name, (position, field))
            position += field.length
        return found


def _shifted(headers: tuple[tuple[int, bytes], ...], by: int) -> "Iterator[tuple[int, bytes]]":
    return ((by + where, header) for where, header in headers)


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
        return Vmdesc(
            tuple(DeviceDescription(_ascii(name), instance, layout) for name, instance, layout in _read(text))
        )
    except (ValueError, RecursionError) as error:
        raise MalformedStreamError(
            f"the vmdesc does not describe devices ({error!r})", offset=offset, section="vmdesc"
        ) from error


_D = TypeVar("_D")
_NONE: Final = msgspec.Raw(b"[]")
_Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=_LONGEST_NAME)]
_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]


class _Field(msgspec.Struct, frozen=True):
    name: _Name
    type: _Name
    size: _Count
    index: _Count | msgspec.UnsetType = msgspec.UNSET
    array_len: _Count | msgspec.UnsetType = msgspec.UNSET
    struct: "_Description | msgspec.UnsetType" = msgspec.UNSET


class _Description(msgspec.Struct, frozen=True):
    vmsd_name: _Name | None = None
    version: _Count | None = None
    fields: tuple[_Field, ...] = ()
    subsections: "tuple[_Description, ...]" = ()


class _Device(msgspec.Struct, frozen=True):
    """A device whose layout is still text, by which it is known again."""

    name: _Name
    instance_id: _Count
    vmsd_name: _Name | None = None
    version: _Count | None = None
    fields: msgspec.Raw = _NONE
    subsections: msgspec.Raw = _NONE


class _WholeDevice(_Description, frozen=True, kw_only=True):
    name: _Name
    instance_id: _Count


class _Json(msgspec.Struct, Generic[_D], frozen=True):
    devices: tuple[_D, ...]


_DECODER: Final = msgspec.json.Decoder(_Json[_Device])
_FIELDS: Final = msgspec.json.Decoder(tuple[_Field, ...])
_SUBSECTIONS: Final = msgspec.json.Decoder(tuple[_Description, ...])

_LONGEST_KEPT: Final = 1 << 16
"""Bytes of text; a longer layout, which no QEMU sends, is not remembered."""


def _read(text: bytes) -> list[tuple[str, int, Layout]]:
    try:
        return [
            (one.name, one.instance_id, _kept(one.vmsd_name, one.version, bytes(one.fields), bytes(one.subsections)))
            for one in _DECODER.decode(text).devices
        ]
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        # Python's own reader takes more: numbers that are none, halves of characters.
        devices = msgspec.convert(json.loads(str(text, "utf-8")), _Json[_WholeDevice]).devices
        return [(one.name, one.instance_id, _layout(one, 0)) for one in devices]


def _kept(name: str | None, version: int | None, fields: bytes, subsections: bytes) -> Layout:
    """Make a layout of its JSON; the vCPUs of a guest have one, as long as a rope, and so have the next guest's."""
    make = _made if len(fields) + len(subsections) <= _LONGEST_KEPT else _made.__wrapped__
    return make(name, version, fields, subsections)


@lru_cache(maxsize=128)
def _made(name: str | None, version: int | None, fields: bytes, subsections: bytes) -> Layout:
    return _layout(_Description(name, version, _FIELDS.decode(fields), _SUBSECTIONS.decode(subsections)), 0)


def _layout(description: _Description, depth: int) -> Layout:
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    return Layout(
        name=None if description.vmsd_name is None else _ascii(description.vmsd_name),
        version=description.version,
        fields=tuple(_field(field, depth + 1) for field in description.fields),
        subsections=tuple(_layout(sub, depth + 1) for sub in description.subsections),
    )


def _field(description: _Field, depth: int) -> Field:
    name = _ascii(description.name)
    if description.index is not msgspec.UNSET:
        name = f"{name}[{description.index}]"
    struct = None if description.struct is msgspec.UNSET else _layout(description.struct, depth)
    count = None if description.array_len is msgspec.UNSET else description.array_len
    if struct is not None and struct.size != description.size:
        raise ValueError(f"struct {name!r} has {struct.size} bytes of fields and a size of {description.size}")
    return Field(name, _ascii(description.type), description.size, count, struct)


def _ascii(name: str) -> str:
    if not name.isascii():
        raise ValueError(f"{name!r} is no name")
    return name
