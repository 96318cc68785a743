"""The vCPUs of a device state."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from formats.errors import MalformedStreamError, RefusedStreamError, UnknownCpuVersionError
from formats.vmstate.vcpus import open_vcpus
from tests.captures import read_manifest
from tests.streams import (
    MIDR,
    NAMES,
    Parts,
    Section,
    buffer_section,
    cpreg_ids,
    cpu_section,
    device_state,
    recorded,
    registers_of,
    short_head,
    small,
    small_sections,
)

MIDR_EL1 = cpreg_ids(1)[0]
WHOLE: "list[tuple[str, Callable[[Parts], bytes]]]" = [("vmdesc", Parts.stream), ("no vmdesc", Parts.bare)]
both = pytest.mark.parametrize("stream_of", [how for _, how in WHOLE], ids=[name for name, _ in WHOLE])


def with_cpu(section: Section) -> Parts:
    parts = small()
    return parts.replaced(parts.index("cpu"), section)


@both
@pytest.mark.parametrize("name", NAMES)
def test_recorded_vcpus(name: str, stream_of: Callable[[Parts], bytes]) -> None:
    parts = recorded(name)
    vcpus = open_vcpus(device_state(stream_of(parts)))
    sections = [section for section in parts.sections if section.name == "cpu"]
    assert [(registers.vcpu, dict(registers.items())) for registers in vcpus] == [
        (section.instance, registers_of(section)) for section in sections
    ]
    assert len(vcpus) == next(int(one.vcpus) for one in read_manifest() if one.name == name)


@both
def test_what_is_set_is_set_in_the_event(stream_of: Callable[[Parts], bytes]) -> None:
    ids = cpreg_ids(20)
    sections = small_sections()
    parts = Parts(short_head(), (*sections, cpu_section(50, ids, [7, *range(1, 20)], instance=1)))
    state = device_state(stream_of(parts))
    before = bytes(state.raw)
    vcpus = open_vcpus(state)
    vcpus[0][MIDR_EL1] = 0x1111111111111111
    vcpus[1][MIDR_EL1] = 0x2222222222222222
    after = bytes(state.raw)
    assert len(after) == len(before)
    assert {index for index in range(len(after)) if after[index] != before[index]} == {
        at + by for at in (after.index(b"\x11" * 8), after.index(b"\x22" * 8)) for by in range(8)
    }
    assert [registers[MIDR_EL1] for registers in open_vcpus(state)] == [0x1111111111111111, 0x2222222222222222]


OTHER_BODIES = [bytes(3000), bytes(range(256)) * 12, b"\xff" * 700, b"\x01"]


@both
@pytest.mark.parametrize("version", [12, 8])
def test_the_cpus_of_other_architectures_are_passed_by(version: int, stream_of: Callable[[Parts], bytes]) -> None:
    for body in OTHER_BODIES:
        parts = with_cpu(buffer_section(4, "cpu", body, version=version))
        state = device_state(stream_of(parts))
        assert open_vcpus(state) == []
        assert bytes(state.raw) == stream_of(parts)[len(parts.head) :]


def test_the_cpu_of_another_architecture_may_have_version_22() -> None:
    """With a vmdesc it passes; without one it passes or is refused, but is not called a stream that was cut off."""
    for body in OTHER_BODIES:
        parts = with_cpu(buffer_section(4, "cpu", body, version=22))
        assert open_vcpus(device_state(parts.stream())) == []
        with suppress(RefusedStreamError):
            assert open_vcpus(device_state(parts.bare())) == []


@both
@pytest.mark.parametrize("version", [21, 23])
def test_an_arm64_cpu_of_another_version_is_refused(version: int, stream_of: Callable[[Parts], bytes]) -> None:
    ids = cpreg_ids(20)
    section = cpu_section(4, ids, [MIDR, *range(1, 20)])
    section = replace(section, version=version, description={**section.description, "version": version})
    parts = with_cpu(section)
    state = device_state(stream_of(parts))
    with pytest.raises(UnknownCpuVersionError, match=f"version {version}") as caught:
        open_vcpus(state)
    assert caught.value.section == "'cpu' instance 0"
    assert stream_of(parts).startswith(section.body, caught.value.offset)


@both
def test_a_broken_register_list_is_malformed(stream_of: Callable[[Parts], bytes]) -> None:
    ids = cpreg_ids(20)
    ids[5] = ids[4]
    parts = with_cpu(cpu_section(4, ids, [MIDR, *range(1, 20)]))
    state = device_state(stream_of(parts))
    with pytest.raises(MalformedStreamError):
        open_vcpus(state)


def test_the_registers_of_an_x86_guest_do_not_make_it_arm64() -> None:
    """A guest can write what looks like register ids into its vector registers; the vmdesc says what they are."""
    vectors = b"".join(number.to_bytes(8, "big") for number in cpreg_ids(64))
    section = buffer_section(4, "cpu", bytes(1200) + vectors + bytes(600), version=12)
    assert open_vcpus(device_state(with_cpu(section).stream())) == []


def test_only_sections_named_cpu_are_looked_into() -> None:
    parts = small()
    cpu = parts.sections[parts.index("cpu")]
    parts = parts.inserted(0, replace(buffer_section(40, "cpu_common", cpu.body), version=22, description={
        **cpu.description, "name": "cpu_common"
    }))  # fmt: skip
    assert len(open_vcpus(device_state(parts.stream()))) == 1


def test_a_state_without_a_vcpu() -> None:
    parts = small()
    index = parts.index("cpu")
    parts = replace(parts, sections=parts.sections[:index] + parts.sections[index + 1 :])
    assert open_vcpus(device_state(parts.stream())) == []
