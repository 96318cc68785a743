"""How two streams, or two hosts, differ: registers and their fields, sections and theirs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from formats.arm.id_fields import differing
from formats.arm.sysreg import describe, format_id

if TYPE_CHECKING:
    from formats.vmstate.fields import DecodedField

SectionKey = tuple[str, int]
Sections = Mapping[SectionKey, "Sequence[DecodedField]"]


@dataclass(frozen=True, slots=True)
class RegisterDifference:
    """A register that is not the same.

    Attributes:
        vcpu: The vCPU's index.
        register: The register's id.
        first: The value in the first; None where it has none, or it is not known.
        second: The same of the second.
        there: In which of the two the register is.
    """

    vcpu: int
    register: int
    first: int | None
    second: int | None
    there: tuple[bool, bool]

    @property
    def fields(self) -> list[str]:
        """The fields that differ, as `DebugVer 8, 6`; none for what is no ID register."""
        if self.first is None or self.second is None or not describe(self.register).invariant:
            return []
        return [
            f"{field.name} {field.value(self.first)}, {field.value(self.second)}"
            for field in differing(self.register, self.first, self.second)
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return it as it goes into JSON."""
        register = describe(self.register)
        return {
            "vcpu": self.vcpu,
            "register": register.name,
            "id": format_id(self.register),
            "kind": register.kind.value,
            "in": [name for name, there in zip(("first", "second"), self.there, strict=True) if there],
            "first": None if self.first is None else f"{self.first:#x}",
            "second": None if self.second is None else f"{self.second:#x}",
            "fields": self.fields,
        }


@dataclass(frozen=True, slots=True)
class SectionDifference:
    """A device section that is not the same.

    Attributes:
        name: The section's idstr.
        instance: Its instance id.
        there: In which of the two it is.
        fields: The fields that differ, outermost name first, where both have it.
    """

    name: str
    instance: int
    there: tuple[bool, bool]
    fields: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it as it goes into JSON."""
        present = [name for name, there in zip(("first", "second"), self.there, strict=True) if there]
        return {"name": self.name, "instance": self.instance, "in": present, "fields": list(self.fields)}


Vcpus = Mapping[int, Mapping[int, int | None]]
"""The values of the registers, by vCPU and register id; None for a value that is not known."""


def register_differences(first: Vcpus, second: Vcpus) -> Iterator[RegisterDifference]:
    """Yield the registers that differ, by vCPU and id; vCPUs that only one has are left to the sections."""
    for vcpu in sorted(first.keys() & second.keys()):
        here, there = first[vcpu], second[vcpu]
        for register in sorted(here.keys() | there.keys()):
            one, other = here.get(register), there.get(register)
            present = register in here, register in there
            if present != (True, True) or (one is not None and other is not None and one != other):
                yield RegisterDifference(vcpu, register, one, other, present)


def section_differences(first: Sections, second: Sections) -> Iterator[SectionDifference]:
    """Yield the device sections that differ, in the order of the first, then those that only the second has."""
    for key in [*first, *(key for key in second if key not in first)]:
        name, instance = key
        if key not in first or key not in second:
            yield SectionDifference(name, instance, (key in first, key in second))
            continue
        fields = tuple(_different_fields(first[key], second[key]))
        if fields:
            yield SectionDifference(name, instance, (True, True), fields)


def _different_fields(first: "Sequence[DecodedField]", second: "Sequence[DecodedField]") -> Iterator[str]:
    """Name the fields that differ; section ids, which header and footer hold, say nothing of the device."""
    ours, theirs = ({one.path: one.value for one in fields[1:-1]} for fields in (first, second))
    for path in [*ours, *(path for path in theirs if path not in ours)]:
        if path not in ours or path not in theirs or ours[path] != theirs[path]:
            yield "/".join(path)
