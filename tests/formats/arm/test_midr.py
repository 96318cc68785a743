import pytest

from formats.arm.errata import all_errata
from formats.arm.midr import ProcessorId, core_names, parse_midr_el1


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (0x411FD070, "Arm Cortex-A57 r1p0"),
        (0x411FD073, "Arm Cortex-A57 r1p3"),
        (0x414FD0C1, "Arm Neoverse-N1 r4p1"),
        (0x431F0AF1, "Cavium ThunderX2 r1p1"),
        (0x420F5161, "Broadcom Vulcan r0p1"),
        (0x413FD0C1, "Arm Neoverse-N1 r3p1"),
        (0x481FD010, "HiSilicon TSV110 r1p0"),
        (0x480FD030, "HiSilicon Kunpeng-920C r0p0"),
        (0x700F8620, "Phytium FTC862 r0p0"),
        (0x431F0B81, "Cavium ThunderX3 r1p1"),
        (0x610F0390, "Apple Avalanche-M2-Max r0p0"),
        (0x7F0FABC2, "implementer 0x7f part 0xabc r0p2"),
    ],
)
def test_names(value: int, name: str) -> None:
    assert str(parse_midr_el1(value)) == name


def test_fields() -> None:
    assert parse_midr_el1(0x12345678) == ProcessorId(implementer=0x12, variant=3, part=0x567, revision=8)


LINUX: dict[int, tuple[int, ...]] = {
    0x41: (
        *(0xD02, 0xD03, 0xD04, 0xD05, 0xD06, 0xD07, 0xD08, 0xD09, 0xD0A, 0xD0B, 0xD0C, 0xD0D, 0xD0E, 0xD40, 0xD41),
        *(0xD42, 0xD44, 0xD46, 0xD47, 0xD48, 0xD49, 0xD4B, 0xD4C, 0xD4D, 0xD4E, 0xD4F, 0xD80, 0xD81, 0xD82, 0xD83),
        *(0xD84, 0xD85, 0xD87, 0xD89, 0xD8B, 0xD8C, 0xD8E, 0xD90),
    ),
    0x42: (0x100, 0x516),
    0x43: (0x0A1, 0x0A2, 0x0A3, 0x0AF, 0x0B1, 0x0B2, 0x0B3, 0x0B4, 0x0B5, 0x0B6),
    0x46: (0x001,),
    0x48: (0xD01, 0xD02, 0xD06),
    0x4E: (0x003, 0x004, 0x010),
    0x50: (0x000,),
    0x51: (0x001, 0x200, 0x800, 0x801, 0x802, 0x803, 0x804, 0x805, 0xC00),
    0x61: (0x022, 0x023, 0x024, 0x025, 0x028, 0x029, 0x032, 0x033, 0x034, 0x035, 0x038, 0x039),
    0x6D: (0xD49,),
    0xC0: (0xAC3, 0xAC4),
}
"""The cores that Linux names, by implementer. Source: Linux 6.18 `arch/arm64/include/asm/cputype.h`."""


def test_every_core_that_linux_names_has_a_name() -> None:
    assert {(implementer, part) for implementer, parts in LINUX.items() for part in parts} <= core_names().keys()


def test_every_core_that_linux_knows_an_erratum_of_has_a_name() -> None:
    cores = {(one.implementer, one.part) for erratum in all_errata() for one in erratum.processors}
    assert len(cores) > 30
    assert cores <= core_names().keys()


def test_no_name_stands_for_two_cores() -> None:
    names = [core.lower() for _, core in core_names().values()]
    assert len(names) == len(set(names))
