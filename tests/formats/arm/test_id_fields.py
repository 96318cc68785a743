"""Fields of the ID registers, held against recorded streams and against the rules of Linux."""

import lzma
import re
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.arm.id_fields import IdField, Order, differing, fields_of, refused_fields
from formats.arm.midr import parse_midr_el1
from formats.arm.sysreg import MIDR_EL1, Kind, describe, parse_register
from formats.tables import read_rows
from proxy.captures.offline import read_vcpus
from tests.captures import read_manifest

ROOT = Path(__file__).parents[3]
CAPTURES = sorted(one.name for one in read_manifest() if one.arm64 and one.whole)

ENTRY = re.compile(r"[0-9]{1,2}(:[0-9]{1,2})?( signed)?( (lower|higher|higher-or-zero|exact))?")
ALL_BITS = 2**64 - 1

# What Linux 6.12 lets be written: `sys_reg_descs` in `arch/arm64/kvm/sys_regs.c`.
WRITABLE = {
    "ID_AA64DFR0_EL1": 0x0000_00F0_00F0_0F0F,
    "ID_AA64MMFR0_EL1": 0xFF00_F000_FFFF_FF0F,
    "ID_AA64MMFR1_EL1": 0xFFFF_F0F0_0FFF_F00F,
    "ID_AA64PFR0_EL1": 0xFFFF_00F0_0F00_FFFF,
    "CTR_EL0": 0x300F_000F,
}


@cache
def raw_table() -> dict[str, dict[str, str]]:
    table = read_rows("formats.arm", "id_fields.txt")
    assert all(len({name for name, *_ in rows}) == len(rows) for rows in table.values())
    return {register: {name: " ".join(words) for name, *words in rows} for register, rows in table.items()}


@cache
def vcpus(capture: str) -> tuple[dict[int, int], ...]:
    with lzma.open(ROOT / "captures" / f"{capture}.xz") as stream:
        return tuple(dict(registers.items()) for registers in read_vcpus(stream))


def field(register: str, name: str) -> IdField:
    return next(field for field in fields_of(parse_register(register)) if field.name == name)


def names(fields: list[IdField]) -> list[str]:
    return [field.name for field in fields]


REGISTERS = sorted(raw_table())


# --- the table


@pytest.mark.parametrize("register", REGISTERS)
def test_the_fields_of_a_register_have_room_beside_each_other(register: str) -> None:
    fields = fields_of(parse_register(register))
    assert {field.name for field in fields} == set(raw_table()[register])
    assert all(field.low >= 0 and field.width >= 1 for field in fields)
    assert all(lower.low + lower.width <= upper.low for lower, upper in pairwise(fields))
    of_aarch32 = re.fullmatch(r"(ID_(?!AA64).*|MVFR.*|MIDR_EL1|CCSIDR_EL1)", register) is not None
    assert fields[-1].low + fields[-1].width <= (32 if of_aarch32 else 64)


@pytest.mark.parametrize("register", REGISTERS)
def test_every_entry_says_what_the_reader_understands(register: str) -> None:
    assert [text for text in raw_table()[register].values() if not ENTRY.fullmatch(text)] == []


def test_every_identification_register_with_a_name_has_fields() -> None:
    entries = [name for _, name, *_ in read_rows("formats.arm", "sysregs.txt")["aarch64"]]
    identification = {name for name in entries if describe(parse_register(name)).kind is Kind.IDENTIFICATION}
    # All of ID_AA64AFR1_EL1 is reserved; MPIDR_EL1 is the guest's own state, and listed so that it can be read, and
    # CNTFRQ_EL0 so that it can be named.
    assert identification - set(REGISTERS) == {"ID_AA64AFR1_EL1"}
    aarch32 = {"DBGDIDR", "DBGDEVID_QEMU", "DBGDEVID1_QEMU"}
    assert set(REGISTERS) - identification == {"MPIDR_EL1", "CNTFRQ_EL0"} | aarch32


@pytest.mark.parametrize("register", [name for name in REGISTERS if re.match(r"ID_|MVFR", name)])
def test_feature_fields_sit_on_nibbles(register: str) -> None:
    # The architecture's scheme; a slip in a bit number breaks it.
    for field in fields_of(parse_register(register)):
        assert field.width == 1 or (field.low % 4 == 0 and field.width in (4, 8))


@pytest.mark.parametrize("number", range(1, 4))
@pytest.mark.parametrize("group", ["ID_MMFR", "ID_ISAR"])
def test_registers_that_linux_lists_without_names_are_listed_as_a_whole(group: str, number: int) -> None:
    fields = fields_of(parse_register(f"{group}{number}_EL1"))
    assert [(field.low, field.width) for field in fields] == [(low, 4) for low in range(0, 32, 4)]
    assert {(field.signed, field.order) for field in fields} == {(False, Order.LOWER_SAFE)}


@pytest.mark.parametrize(
    ("register", "name", "low", "width", "signed", "order"),
    [
        ("ID_AA64DFR0_EL1", "DebugVer", 0, 4, False, Order.LOWER_SAFE),
        ("ID_AA64DFR0_EL1", "PMUVer", 8, 4, False, Order.LOWER_SAFE),
        ("ID_AA64DFR0_EL1", "DoubleLock", 36, 4, True, Order.LOWER_SAFE),
        ("ID_AA64DFR0_EL1", "TraceVer", 4, 4, False, Order.EXACT),
        ("ID_DFR0_EL1", "PerfMon", 24, 4, False, Order.LOWER_SAFE),
        ("ID_DFR1_EL1", "MTPMU", 0, 4, True, Order.LOWER_SAFE),
        ("ID_MMFR0_EL1", "InnerShr", 28, 4, True, Order.LOWER_SAFE),
        ("ID_MMFR4_EL1", "SpecSEI", 0, 4, False, Order.HIGHER_SAFE),
        ("ID_AA64PFR0_EL1", "FP", 16, 4, True, Order.LOWER_SAFE),
        ("ID_AA64PFR0_EL1", "AdvSIMD", 20, 4, True, Order.LOWER_SAFE),
        ("ID_AA64PFR0_EL1", "GIC", 24, 4, False, Order.LOWER_SAFE),
        ("ID_AA64PFR0_EL1", "RME", 52, 4, False, Order.EXACT),
        ("ID_AA64MMFR0_EL1", "TGRAN16", 20, 4, False, Order.LOWER_SAFE),
        ("ID_AA64MMFR0_EL1", "TGRAN64", 24, 4, True, Order.LOWER_SAFE),
        ("ID_AA64MMFR0_EL1", "TGRAN4", 28, 4, True, Order.LOWER_SAFE),
        ("ID_AA64MMFR0_EL1", "TGRAN4_2", 40, 4, False, Order.EXACT),
        ("ID_AA64MMFR1_EL1", "SpecSEI", 24, 4, False, Order.HIGHER_SAFE),
        ("ID_AA64MMFR4_EL1", "E2H0", 24, 4, True, Order.LOWER_SAFE),
        ("ID_AA64ISAR1_EL1", "APA", 4, 4, False, Order.EXACT),
        ("ID_AA64SMFR0_EL1", "FA64", 63, 1, False, Order.EXACT),
        ("CTR_EL0", "IDC", 28, 1, False, Order.LOWER_SAFE),
        ("CTR_EL0", "CWG", 24, 4, False, Order.HIGHER_OR_ZERO_SAFE),
        ("CTR_EL0", "L1Ip", 14, 2, False, Order.EXACT),
        ("DCZID_EL0", "DZP", 4, 1, False, Order.EXACT),
        ("CLIDR_EL1", "ICB", 30, 3, False, Order.EXACT),
        ("CLIDR_EL1", "Ttype7", 45, 2, False, Order.EXACT),
        ("CCSIDR_EL1[5]", "NumSets", 13, 15, False, Order.EXACT),
        ("MPIDR_EL1", "Aff3", 32, 8, False, Order.EXACT),
    ],
)
def test_well_known_fields(register: str, name: str, low: int, width: int, signed: bool, order: Order) -> None:
    assert field(register, name) == IdField(name, low, width, signed, order)


@given(st.integers(0, 2**32 - 1))
def test_midr_reads_as_the_processor_id_does(value: int) -> None:
    processor = parse_midr_el1(value)
    fields = {field.name: field.value(value) for field in fields_of(MIDR_EL1)}
    architecture = fields.pop("Architecture")
    assert fields == {
        "Revision": processor.revision,
        "PartNum": processor.part,
        "Variant": processor.variant,
        "Implementer": processor.implementer,
    }
    assert architecture == value >> 16 & 0xF


# --- which registers


@pytest.mark.parametrize(
    ("twin", "register"),
    [
        ("ID_MMFR0", "ID_MMFR0_EL1"),
        ("ID_MMFR0_S", "ID_MMFR0_EL1"),
        ("ID_PFR2", "ID_PFR2_EL1"),
        ("MIDR", "MIDR_EL1"),
        ("CCSIDR", "CCSIDR_EL1"),
        ("CCSIDR_EL1[0]", "CCSIDR_EL1"),
        ("CCSIDR_EL1[255]", "CCSIDR_EL1"),
    ],
)
def test_registers_that_are_the_same_have_the_same_fields(twin: str, register: str) -> None:
    assert fields_of(parse_register(twin)) == fields_of(parse_register(register)) != ()


@pytest.mark.parametrize(("twin", "register"), [("CTR", "CTR_EL0"), ("CLIDR", "CLIDR_EL1"), ("REVIDR", "REVIDR_EL1")])
def test_an_aarch32_register_has_the_fields_of_the_lower_half(twin: str, register: str) -> None:
    fields = fields_of(parse_register(twin))
    whole = fields_of(parse_register(register))
    assert [(field.name, field.low) for field in fields] == [(field.name, field.low) for field in whole[: len(fields)]]
    assert sum(field.mask for field in fields) == sum(field.mask for field in whole) & 0xFFFF_FFFF


@pytest.mark.parametrize(
    "register", ["SCTLR_EL1", "ID_RES_3_0_0_3_3", "ID_AA64AFR1_EL1", "DBGDRAR", "ID_RES_P15_0_C0_C15_0", "0x1234"]
)
def test_other_registers_have_no_fields_but_no_bit_is_lost(register: str) -> None:
    register_id = parse_register(register)
    assert fields_of(register_id) == ()
    (everything,) = differing(register_id, 0, 1 << 40)
    assert (everything.name, everything.mask) == ("bits 63:0", ALL_BITS)


# --- values


@pytest.mark.parametrize(
    ("register", "name", "bits", "value"),
    [
        ("ID_AA64PFR0_EL1", "AdvSIMD", 0xF, -1),
        ("ID_AA64PFR0_EL1", "FP", 0x1, 1),
        ("ID_AA64MMFR0_EL1", "TGRAN4", 0xF, -1),
        ("ID_AA64MMFR0_EL1", "TGRAN16", 0xF, 15),
        ("ID_AA64MMFR4_EL1", "E2H0", 0xE, -2),
        ("ID_AA64DFR0_EL1", "PMUVer", 0xF, 15),
        ("ID_AA64SMFR0_EL1", "FA64", 0x1, 1),
    ],
)
def test_only_a_signed_field_goes_below_zero(register: str, name: str, bits: int, value: int) -> None:
    found = field(register, name)
    assert found.value(bits << found.low) == value
    assert found.value(ALL_BITS & ~found.mask | bits << found.low) == value


def safe_value(order: Order, value: int, limit: int) -> int | None:
    """Follow `arm64_ftr_safe_value`; None for the constant of an exact field."""
    if order is Order.EXACT:
        return None
    if order is Order.LOWER_SAFE:
        return min(value, limit)
    if order is Order.HIGHER_OR_ZERO_SAFE and not (value and limit):
        return 0
    return max(value, limit)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("order", Order)
def test_a_host_takes_its_own_value_and_the_safe_one(order: Order, signed: bool) -> None:
    some = IdField("some", 0, 4, signed, order)
    for limit in map(some.value, range(16)):
        taken = {value for value in map(some.value, range(16)) if some.takes(value, limit)}
        assert taken == {limit} | {
            value for value in map(some.value, range(16)) if safe_value(order, value, limit) == value
        }


def test_what_is_not_implemented_is_taken_where_it_is_implemented() -> None:
    # In a signed field 0xf stands for nothing, and for less than 0; in an unsigned one it would be the most there is.
    for register, name in [("ID_AA64PFR0_EL1", "FP"), ("ID_AA64MMFR0_EL1", "TGRAN64")]:
        found = field(register, name)
        missing = found.value(0xF << found.low)
        assert found.takes(missing, 0)
        assert not found.takes(0, missing)
    granule = field("ID_AA64MMFR0_EL1", "TGRAN16")
    assert granule.takes(0, 0xF)
    assert not granule.takes(0xF, 0)


# --- what differs, what is refused


def test_debug_version_is_all_that_differs() -> None:
    register_id = parse_register("ID_AA64DFR0_EL1")
    (found,) = differing(register_id, 0x1030_5408, 0x1030_5406)
    assert (found.name, found.value(0x1030_5408), found.value(0x1030_5406)) == ("DebugVer", 8, 6)


@pytest.mark.parametrize(
    ("register", "value", "limit", "refused"),
    [
        # From Linux 6.1, whose KVM says 6, to 6.12 on the same processor; and what became of it, back.
        ("ID_AA64DFR0_EL1", 0x1030_5406, 0x1030_5408, []),
        ("ID_AA64DFR0_EL1", 0x1030_5408, 0x1030_5406, ["DebugVer"]),
        # Fewer watchpoints may be shown, fewer breakpoints not.
        ("ID_AA64DFR0_EL1", 0x1010_5408, 0x1030_5408, []),
        ("ID_AA64DFR0_EL1", 0x1030_3408, 0x1030_5408, ["BRPs"]),
        ("ID_AA64DFR0_EL1", 0x1040_6508, 0x1030_5408, ["PMUVer", "BRPs", "WRPs"]),
        # The guest's GIC decides this field; FP is fixed, RME is not listed, so that not even less of it is taken.
        ("ID_AA64PFR0_EL1", 0x1100_0000_1011_0112, 0x1100_0000_1111_0112, []),
        ("ID_AA64PFR0_EL1", 0x1100_0000_1111_0112, 0x1100_0000_1011_0112, ["GIC"]),
        ("ID_AA64PFR0_EL1", 0x1100_0000_1110_0112, 0x1100_0000_1111_0112, ["FP"]),
        ("ID_AA64PFR0_EL1", 0x1100_0000_1111_0112, 0x1110_0000_1111_0112, ["RME"]),
        # A Cortex-A57 has AArch32 at EL1, and no 16 KiB granule.
        ("ID_AA64PFR0_EL1", 0x1000_0000_0100_0222, 0x1100_0000_1111_0112, ["EL1", "EL2", "FP", "AdvSIMD", "RAS"]),
        ("ID_AA64MMFR0_EL1", 0x1124, 0x10_1125, []),
        ("ID_AA64MMFR0_EL1", 0x10_1125, 0x1124, ["PARANGE", "TGRAN16"]),
        ("ID_AA64MMFR0_EL1", 0xFF00_1124, 0x1124, []),
        ("ID_AA64MMFR0_EL1", 0x1104, 0x1124, ["ASIDBITS"]),
        # A warning may be added, not taken away.
        ("ID_AA64MMFR1_EL1", 0x1021_2122, 0x1121_2122, ["SpecSEI"]),
        ("ID_AA64MMFR1_EL1", 0x1121_2122, 0x1021_2122, []),
        ("CTR_EL0", 0x8444_C004, 0x9444_C004, []),
        ("CTR_EL0", 0x9444_C004, 0x8444_C004, ["IDC"]),
        ("CTR_EL0", 0x9544_C004, 0x9444_C004, ["CWG"]),
        ("CTR_EL0", 0x9444_8004, 0x9444_C004, ["L1Ip"]),
        ("CTR_EL0", 0x9444_C014, 0x9444_C004, ["bits 13:4"]),
        ("CTR_EL0", 0xD444_C004, 0x9444_C004, ["bit 30"]),
    ],
)
def test_what_linux_6_12_would_refuse(register: str, value: int, limit: int, refused: list[str]) -> None:
    register_id = parse_register(register)
    assert names(refused_fields(register_id, value, limit, WRITABLE[register])) == refused


@pytest.mark.parametrize(
    ("writable", "refused"), [(0xF, []), (0x7, ["DebugVer"]), (~0xF & ALL_BITS, ["DebugVer"]), (0, ["DebugVer"])]
)
def test_a_field_must_be_writable_as_a_whole(writable: int, refused: list[str]) -> None:
    register_id = parse_register("ID_AA64DFR0_EL1")
    assert names(refused_fields(register_id, 0x1030_5406, 0x1030_5408, writable)) == refused


def test_bits_between_the_fields_are_refused_whatever_is_writable() -> None:
    register_id = parse_register("ID_AA64PFR1_EL1")
    (refused,) = refused_fields(register_id, 0, 1 << 21, ALL_BITS)
    assert (refused.name, refused.mask) == ("bits 23:20", 0xF0_0000)


any_register = st.sampled_from([parse_register(name) for name in [*REGISTERS, "CCSIDR_EL1[3]", "CTR", "SCTLR_EL1"]])
any_value = st.integers(0, ALL_BITS)


@given(any_register, any_value, any_value)
def test_what_a_host_has_is_never_refused(register_id: int, value: int, writable: int) -> None:
    assert refused_fields(register_id, value, value, writable) == []


@given(any_register, any_value, any_value)
def test_fields_cover_what_differs_and_without_writable_bits_all_of_it_is_refused(
    register_id: int, value: int, limit: int
) -> None:
    fields = differing(register_id, value, limit)
    assert all(field.value(value) != field.value(limit) for field in fields)
    assert sum(field.mask for field in fields) & (value ^ limit) == value ^ limit
    assert all(lower.low + lower.width <= upper.low for lower, upper in pairwise(fields))
    assert refused_fields(register_id, value, limit, 0) == list(fields)


@given(any_register, any_value, any_value, any_value, any_value)
def test_more_writable_bits_never_refuse_more(
    register_id: int, value: int, limit: int, writable: int, more: int
) -> None:
    refused = refused_fields(register_id, value, limit, writable)
    still = refused_fields(register_id, value, limit, writable | more)
    assert set(still) <= set(refused) <= set(differing(register_id, value, limit))


@given(any_register, any_value, any_value, any_value)
def test_what_is_refused_is_all_that_must_be_changed(register_id: int, value: int, limit: int, writable: int) -> None:
    for field in refused_fields(register_id, value, limit, writable):
        value = value & ~field.mask | limit & field.mask
    assert refused_fields(register_id, value, limit, writable) == []


# --- recorded streams


def test_there_are_captures() -> None:
    assert len(CAPTURES) >= 2


@pytest.mark.parametrize("capture", CAPTURES)
def test_bits_that_are_set_in_a_recorded_stream_have_a_name(capture: str) -> None:
    machines = vcpus(capture)
    assert machines
    for registers in machines:
        invariant = [number for number in registers if describe(number).invariant]
        assert len(invariant) > 60
        for number in invariant:
            nameless = set(differing(number, registers[number], 0)) - set(fields_of(number))
            assert (describe(number).name, nameless) == (describe(number).name, set())


@pytest.mark.parametrize(("first", "second"), list(combinations(CAPTURES, 2)))
def test_recorded_streams_differ_in_named_fields_only(first: str, second: str) -> None:
    for old, new in zip(vcpus(first), vcpus(second), strict=False):
        for number in old.keys() & new.keys():
            if describe(number).invariant:
                fields = differing(number, old[number], new[number])
                assert set(fields) <= set(fields_of(number))
                assert bool(fields) == (old[number] != new[number])


@pytest.mark.parametrize("capture", CAPTURES)
def test_what_linux_does_not_list_is_zero_to_a_guest(capture: str) -> None:
    # Where it were not, a field that has no order in the table would have one in Linux.
    orders = tuple(order.value for order in Order)
    sanitised = [name for name, fields in raw_table().items() if any(text.endswith(orders) for text in fields.values())]
    unlisted = [
        (name, key) for name in sanitised for key, text in raw_table()[name].items() if not text.endswith(orders)
    ]
    for registers in vcpus(capture):
        there = [(name, key) for name, key in unlisted if parse_register(name) in registers]
        assert len(there) > 40
        shown = {(name, key): field(name, key).value(registers[parse_register(name)]) for name, key in there}
        assert {place: value for place, value in shown.items() if value} == {}


def test_the_processors_of_the_recorded_streams_show_what_they_are() -> None:
    # Technical reference manuals: a Cortex-A57 is Armv8.0 and has a 44-bit physical address; a Neoverse-N1 is
    # Armv8.2, has 48 bits, half precision, atomics, dot products, and no AArch32 above EL0.
    (a57,), (n1,) = vcpus("kvm-trixie-a57r0"), vcpus("kvm-trixie-n1")

    def values(registers: dict[int, int], register: str, *wanted: str) -> list[int]:
        return [field(register, name).value(registers[parse_register(register)]) for name in wanted]

    for register, wanted, of_a57, of_n1 in [
        ("ID_AA64PFR0_EL1", ("EL0", "EL1", "FP", "AdvSIMD", "GIC"), [2, 2, 0, 0, 1], [2, 1, 1, 1, 1]),
        ("ID_AA64DFR0_EL1", ("DebugVer", "PMUVer", "BRPs", "WRPs"), [6, 1, 5, 3], [8, 4, 5, 3]),
        ("ID_AA64ISAR0_EL1", ("AES", "SHA1", "CRC32", "ATOMIC", "DP"), [2, 1, 1, 0, 0], [2, 1, 1, 2, 1]),
        ("ID_AA64MMFR0_EL1", ("PARANGE", "TGRAN16", "TGRAN64", "TGRAN4"), [4, 0, 0, 0], [5, 1, 0, 0]),
        ("ID_AA64MMFR1_EL1", ("HAFDBS", "VMIDBits", "VH", "PAN"), [0, 0, 0, 0], [2, 2, 1, 2]),
        ("CTR_EL0", ("IminLine", "L1Ip", "DminLine", "ERG", "CWG", "IDC"), [4, 3, 4, 4, 4, 0], [4, 3, 4, 4, 4, 1]),
    ]:
        assert values(a57, register, *wanted) == of_a57
        assert values(n1, register, *wanted) == of_n1
