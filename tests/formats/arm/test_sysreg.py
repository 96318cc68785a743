"""Names and kinds of registers, held against the registers of recorded streams."""

import lzma
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.arm import sysreg
from formats.arm.sysreg import Kind, UnknownRegisterError, describe, format_id, parse_register, size_of
from formats.tables import read_rows
from tests.captures import read_manifest

ROOT = Path(__file__).parents[3]
ARM64_CAPTURES = sorted(one.path for one in read_manifest() if one.arm64 and one.outcome != "refused")
KVM_CAPTURES = sorted(one.path for one in read_manifest() if one.saved_on_kvm)

CPU_SECTION = b"\x03cpu"
CPU_VERSION = 22
FIXED_PART = 568

# What a cortex-a57 under TCG (QEMU 7.2) lists and KVM does not, thinned where many ids differ in one number only.
TCG_CORTEX_A57 = """
    40200000000f6800 40200000000f6801 40200000200e0000 40200000200e0004 40200000200e0038 40200000200e0102
    40200000200e0285 40200000200e0800 40200000200e0838 40200000200e0884 40200000200e0984 40200000200e1000
    40200000200e1038 40200000200e3800 40200000200e3801 40200000200e3802 40200000200f0001 40200000200f0002
    40200000200f0003 40200000200f0006 40200000200f0009 40200000200f000f 40200000200f0080 40200000200f0082
    40200000200f0084 40200000200f0107 40200000200f0180 40200000200f0183 40200000200f0184 40200000200f0187
    40200000200f0200 40200000200f0780 40200000200f0801 40200000200f0802 40200000200f0821 40200000200f0882
    40200000200f1800 40200000200f2801 40200000200f2880 40200000200f2881 40200000200f3000 40200000200f3001
    40200000200f3002 40200000200f3a00 40200000200f480a 40200000200f480b 40200000200f4e03 40200000200f4e06
    40200000200f4e07 40200000200f4f00 40200000200f5100 40200000200f5101 40200000200f5180 40200000200f5181
    40200000200f6800 40200000200f6801 40200000200f6802 40200000200f6803 40200000200f6804 40200000200f7080
    40200000200f7808 40200000200f7988 40300000200e0080 40300000200e0100 40300000200f0380 40300000200f0780
    40300000200f0788 40300000200f0790 40300000200f0798 6030000000138080 603000000013809c 6030000000139808
    603000000013c601 603000000013cd82 603000000013cd83 603000000013cf80 603000000013cf90 603000000013cf91
    603000000013cf92 603000000013cf93 603000000013cf98 603000000013da20 603000000013da21 603000000013dce6
    603000000013dce7 603000000013df00 603000000013e081 603000000013f081 603000000013f099 603000000013f510
    603000000013ff11 603000000013ff12
"""


def registers_of(stream: bytes) -> Iterator[dict[int, int]]:
    """Give the registers of each vCPU; a plain search will do, for these captures were made by friendly guests."""
    at = stream.find(CPU_SECTION)
    while at >= 0:
        body = at + len(CPU_SECTION) + 8
        _instance, version = struct.unpack_from(">II", stream, body - 8)
        if version == CPU_VERSION:
            (count,) = struct.unpack_from(">I", stream, body + FIXED_PART)
            numbers = struct.unpack_from(f">{2 * count}Q", stream, body + FIXED_PART + 4)
            yield dict(zip(numbers[:count], numbers[count:], strict=True))
        at = stream.find(CPU_SECTION, body)


def all_registers() -> list[sysreg.Register]:
    return [describe(number) for number in sysreg._named()]


def test_there_are_captures() -> None:
    assert ARM64_CAPTURES


@pytest.mark.parametrize("capture", ARM64_CAPTURES, ids=lambda path: path.stem)
def test_every_register_of_a_recorded_stream_has_a_name(capture: Path) -> None:
    machines = list(registers_of(lzma.decompress(capture.read_bytes())))
    assert machines
    for registers in machines:
        assert [format_id(number) for number in registers if not describe(number).known] == []


@pytest.mark.parametrize("capture", KVM_CAPTURES, ids=lambda path: path.stem)
def test_a_kvm_stream_holds_the_registers_by_their_kind(capture: Path) -> None:
    for registers in registers_of(lzma.decompress(capture.read_bytes())):
        values = {describe(number).name: value for number, value in registers.items()}
        by_kind: dict[Kind, dict[str, int]] = {kind: {} for kind in Kind}
        for number, value in registers.items():
            by_kind[describe(number).kind][describe(number).name] = value
        assert all(by_kind.values())
        # The values give away a name that sits on the wrong encoding: 0x41 is Arm Limited, a control register has
        # three bits, and only a counter, not a compare value, must be above zero.
        assert values["MIDR_EL1"] >> 24 == 0x41
        assert values["KVM_REG_ARM_PSCI_VERSION"] in (0x10000, 0x10001, 0x10002, 0x10003)
        assert all(value <= 7 for name, value in by_kind[Kind.TIMER].items() if "_CTL_" in name)
        assert all(by_kind[Kind.COUNTER].values())
        assert values["ID_AA64DFR0_EL1"] & 0xF >= 6


@pytest.mark.parametrize("digits", TCG_CORTEX_A57.split())
def test_every_register_of_tcg_has_a_name(digits: str) -> None:
    assert describe(int(digits, 16)).known


@pytest.mark.parametrize(
    ("number", "name", "kind"),
    [
        (0x603000000013C000, "MIDR_EL1", Kind.IDENTIFICATION),
        (0x603000000013C005, "MPIDR_EL1", Kind.STATE),
        (0x603000000013C006, "REVIDR_EL1", Kind.IDENTIFICATION),
        (0x603000000013C01B, "ID_RES_3_0_0_3_3", Kind.IDENTIFICATION),
        (0x603000000013C020, "ID_AA64PFR0_EL1", Kind.IDENTIFICATION),
        (0x603000000013C028, "ID_AA64DFR0_EL1", Kind.IDENTIFICATION),
        (0x603000000013C080, "SCTLR_EL1", Kind.STATE),
        (0x603000000013C801, "CLIDR_EL1", Kind.IDENTIFICATION),
        (0x603000000013C807, "AIDR_EL1", Kind.IDENTIFICATION),
        (0x603000000013D000, "CSSELR_EL1", Kind.STATE),
        (0x603000000013D801, "CTR_EL0", Kind.IDENTIFICATION),
        (0x603000000013D807, "DCZID_EL0", Kind.IDENTIFICATION),
        (0x603000000013DCE6, "PMCEID0_EL0", Kind.STATE),
        (0x603000000013DF02, "CNTV_CVAL_EL0", Kind.TIMER),
        (0x603000000013DF19, "CNTV_CTL_EL0", Kind.TIMER),
        (0x603000000013DF1A, "CNTVCT_EL0", Kind.COUNTER),
        (0x6020000000110000, "CCSIDR_EL1[0]", Kind.CACHE_ID),
        (0x602000000011000D, "CCSIDR_EL1[13]", Kind.CACHE_ID),
        (0x6030000000140000, "KVM_REG_ARM_PSCI_VERSION", Kind.FIRMWARE),
        (0x6030000000140003, "KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_3", Kind.FIRMWARE),
        (0x6030000000160002, "KVM_REG_ARM_VENDOR_HYP_BMAP", Kind.FEATURE_BITMAP),
        (0x6030000000100042, "KVM_REG_ARM_CORE_U64[0x0042]", Kind.STATE),
        (0x6080000000150020, "KVM_REG_ARM64_SVE_U2048[0x0020]", Kind.STATE),
        (0x40200000200F0084, "ID_MMFR0", Kind.IDENTIFICATION),
        (0x40200000000F0084, "ID_MMFR0_S", Kind.IDENTIFICATION),
        (0x40200000200F0780, "ID_RES_P15_0_C0_C15_0", Kind.IDENTIFICATION),
        (0x40200000200F0001, "CTR", Kind.IDENTIFICATION),
        (0x40200000200F3A00, "PAR", Kind.STATE),
        (0x40300000200F0380, "PAR_64", Kind.STATE),
    ],
)
def test_well_known_registers(number: int, name: str, kind: Kind) -> None:
    register = describe(number)
    assert (register.id, register.name, register.kind, register.known) == (number, name, kind, True)
    assert register.invariant == (kind in (Kind.IDENTIFICATION, Kind.CACHE_ID))
    assert parse_register(name) == parse_register(name.lower()) == parse_register(f" {format_id(number)} ") == number


def test_the_constant_is_midr() -> None:
    assert parse_register("MIDR_EL1") == sysreg.MIDR_EL1


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (0x603000000014FFFF, Kind.FIRMWARE),
        (0x603000000016FFFF, Kind.FEATURE_BITMAP),
        (0x603000000013FFFF, Kind.STATE),
        (0x602000000013C000, Kind.STATE),
        (0, Kind.STATE),
        (2**64 - 1, Kind.STATE),
    ],
)
def test_an_unknown_register_goes_by_its_id(number: int, kind: Kind) -> None:
    register = describe(number)
    assert (register.name, register.kind, register.known) == (f"0x{number:016x}", kind, False)
    assert not register.invariant


def test_every_place_of_the_aarch64_id_space_is_identification() -> None:
    for crm in range(1, 8):
        for op2 in range(8):
            register = describe(0x603000000013C000 | crm << 3 | op2)
            assert register.known
            assert register.invariant


def test_no_two_registers_share_a_name() -> None:
    names = [register.name.upper() for register in all_registers()]
    assert len(set(names)) == len(names)


def test_no_two_entries_of_the_table_share_an_encoding() -> None:
    table = read_rows("formats.arm", "sysregs.txt")
    entries = [(section, row[0], row[1]) for section, rows in table.items() for row in rows]
    assert len({(section, encoding) for section, encoding, _ in entries}) == len(entries)
    named = {name for *_, name in entries}
    assert len(named) == len(entries)
    assert named <= {register.name for register in all_registers()}


def test_every_name_leads_back_to_its_id() -> None:
    for register in all_registers():
        assert describe(register.id) == register
        assert parse_register(register.name) == register.id


@given(st.integers(0, 2**64 - 1))
def test_any_id_can_be_described_and_found_again(number: int) -> None:
    register = describe(number)
    assert register.id == number
    assert parse_register(register.name) == number
    assert register.known == (register.name != format_id(number))


@given(
    st.sampled_from(
        [0x6000000000100000, 0x6000000000130000, 0x6000000000150000, 0x4000000020000000, 0x4000000000000000]
    ),
    st.integers(0, 15),
    st.integers(0, 0xFFFFF),
)
def test_ids_near_real_ones_can_be_described_and_found_again(block: int, size: int, low: int) -> None:
    number = block | size << 52 | low
    assert parse_register(describe(number).name) == number
    assert size_of(number) == 2**size


@pytest.mark.parametrize("text", ["", "0x", "0x10000000000000000", "0x_1", "13", "CCSIDR_EL1[256]", "MIDR EL1"])
def test_what_is_no_register_is_refused(text: str) -> None:
    with pytest.raises(UnknownRegisterError) as caught:
        parse_register(text)
    assert caught.value.text == text


@pytest.mark.parametrize(
    "text", ["KVM_REG_ARM_CORE_U65[0x0000]", "KVM_REG_ARM_CORE_U0[0x0000]", "KVM_REG_ARM_CORE_U524288[0x0000]"]
)
def test_a_core_register_of_no_possible_size_is_refused(text: str) -> None:
    with pytest.raises(UnknownRegisterError):
        parse_register(text)


def test_a_mistyped_name_brings_the_right_one() -> None:
    with pytest.raises(UnknownRegisterError, match=r"'midr_el'; did you mean MIDR_EL1") as caught:
        parse_register("midr_el")
    assert caught.value.suggestions[0] == "MIDR_EL1"


def test_sizes() -> None:
    assert size_of(sysreg.MIDR_EL1) == 8
    assert size_of(0x6020000000110000) == 4
