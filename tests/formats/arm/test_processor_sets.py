"""Sets of processors, as policies name them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.arm.midr import core_names
from formats.arm.processor_sets import Processors, UnknownProcessorError, parse_processors, read_machines

A57, N1 = (0x41, 0xD07), (0x41, 0xD0C)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cortex-a57 r1p0..r1p3", Processors(*A57, (1, 0), (1, 3))),
        ("  Arm  CORTEX-A57 r1p0 .. r1p3 ", Processors(*A57, (1, 0), (1, 3))),
        ("Cortex-A57 r1p2", Processors(*A57, (1, 2), (1, 2))),
        ("neoverse-n1", Processors(*N1)),
        ("0x43:0x0af r0p0..r2p1", Processors(0x43, 0xAF, (0, 0), (2, 1))),
        ("0x42:0x516", Processors(0x42, 0x516)),
        ("0x411fd073", Processors(*A57, (1, 3), (1, 3))),
        ("cavium thunderx2", Processors(0x43, 0xAF)),
        ("Altra", Processors(*N1, (3, 1), (3, 1))),
        ("altra r3p0..r3p1", Processors(*N1, (3, 0), (3, 1))),
        ("graviton3", Processors(0x41, 0xD40, (1, 1), (1, 1))),
        ("kunpeng-920", Processors(0x48, 0xD01, (1, 0), (1, 0))),
        ("raspberry  pi 5", Processors(0x41, 0xD0B, (4, 1), (4, 1))),
        ("grace", Processors(0x41, 0xD4F, (0, 0), (0, 0))),
        ("graviton4", Processors(0x41, 0xD4F)),
    ],
)
def test_what_can_be_written(text: str, found: Processors) -> None:
    assert parse_processors(text) == found


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no core is known"),
        ("cortex-a57 r1p3..r1p0", "the older one first"),
        ("cortex-a57 r16p0", "r15p15"),
        ("cortex-a57 r0p0..r1p16", "r15p15"),
        ("cortex-a75x", "did you mean cortex-a75"),
        ("altrra", "did you mean altra"),
        ("rk3588", "has 2 kinds of core, Cortex-A76 r4p0 and Cortex-A55 r2p0: name the one"),
        ("apple m1", "has 2 kinds of core, Firestorm-M1 and Icestorm-M1"),
        ("0x1411fd073", "32 bits"),
        ("0x0", "32 bits"),
        ("0x141:0xd07", "8 bits"),
        ("0x41:0xd070", "12"),
        ("r1p0", "no core is known"),
        ("cortex-a57 r1", "no core is known"),
    ],
)
def test_what_cannot(text: str, complaint: str) -> None:
    with pytest.raises(UnknownProcessorError, match=complaint):
        parse_processors(text)


@pytest.mark.parametrize(
    ("midr", "inside"),
    [
        (0x411FD070, True),
        (0x411FD073, True),
        (0x411FD074, False),
        (0x410FD079, False),
        (0x412FD070, False),
        (0x411FD080, False),
        (0x421FD071, False),
        (0x4110D071, True),  # the architecture field says nothing of the revision
    ],
)
def test_what_is_in_a_range(midr: int, inside: bool) -> None:
    assert (midr in parse_processors("cortex-a57 r1p0..r1p3")) is inside


def test_names_for_people() -> None:
    assert str(parse_processors("cortex-a57 r1p0..r1p3")) == "Arm Cortex-A57 r1p0..r1p3"
    assert str(parse_processors("0x411fd073")) == "Arm Cortex-A57 r1p3"
    assert str(parse_processors("neoverse-n1")) == "Arm Neoverse-N1, any revision"


@given(st.sampled_from(sorted(core_names())), st.integers(0, 15), st.integers(0, 15))
def test_every_known_core_can_be_named(key: tuple[int, int], variant: int, revision: int) -> None:
    maker, core = core_names()[key]
    implementer, part = key
    midr = implementer << 24 | variant << 20 | 0xF << 16 | part << 4 | revision
    assert midr in parse_processors(f"{maker} {core} r{variant}p{revision}")
    assert midr in parse_processors(f"{implementer:#x}:{part:#x}")


def test_every_machine_has_cores_that_are_known() -> None:
    machines = read_machines()
    assert all(name == name.lower() for name in machines)
    assert not machines.keys() & {core.lower() for _, core in core_names().values()}
    for cores in machines.values():
        for core in cores:
            processors = parse_processors(core)
            assert (processors.implementer, processors.part) in core_names()


def test_what_one_processor_is() -> None:
    assert parse_processors("cortex-a57 r1p3").midr == 0x411FD073
    assert parse_processors("cortex-a57").midr is None
