import pytest

from formats.arm.midr import ProcessorId, parse_midr_el1


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (0x411FD070, "Arm Cortex-A57 r1p0"),
        (0x411FD073, "Arm Cortex-A57 r1p3"),
        (0x414FD0C1, "Arm Neoverse-N1 r4p1"),
        (0x431F0AF1, "Cavium ThunderX2 r1p1"),
        (0x420F5161, "Broadcom Vulcan r0p1"),
        (0x7F0FABC2, "implementer 0x7f part 0xabc r0p2"),
    ],
)
def test_names(value: int, name: str) -> None:
    assert str(parse_midr_el1(value)) == name


def test_fields() -> None:
    assert parse_midr_el1(0x12345678) == ProcessorId(implementer=0x12, variant=3, part=0x567, revision=8)
