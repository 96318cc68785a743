"""Known faults of kernels: the table, and which guests meet them."""

import pytest

from formats.arm.kernel_faults import KernelFault, Side, kernel_faults, parse_version
from formats.arm.sysreg import MIDR_EL1, parse_register

CLIDR = parse_register("CLIDR_EL1")
PMCR = parse_register("PMCR_EL0")
A57_R0, A57_R3, N1 = 0x411FD070, 0x411FD073, 0x413FD0C1


def named(kernel: str | None, side: Side) -> dict[str, KernelFault]:
    return {fault.name: fault for fault in kernel_faults(kernel, side)}


@pytest.mark.parametrize(
    ("kernel", "version"),
    [
        ("Linux 6.12.94+deb13-arm64", (6, 12)),
        ("6.8.0-45-generic", (6, 8)),
        ("Linux 6.12", (6, 12)),
        ("7.2", (7, 2)),
        ("FreeBSD 14.1", None),
        ("", None),
        (None, None),
    ],
)
def test_a_kernels_version(kernel: str | None, version: tuple[int, int] | None) -> None:
    assert parse_version(kernel) == version


@pytest.mark.parametrize(("version", "there"), [("6.2", 0), ("6.3", 1), ("6.9.12", 1), ("6.10", 0), ("6.12", 0)])
def test_restored_registers_that_are_reset(version: str, there: bool) -> None:
    faults = named(f"Linux {version}", Side.DESTINATION)
    assert ("cache-registers-are-reset" in faults) == there
    assert "cache-registers-are-reset" not in named(version, Side.SOURCE)


def test_every_fault_says_what_it_does_and_where_that_is_written() -> None:
    for side in Side:
        seen = {name: fault for minor in range(21) for name, fault in named(f"6.{minor}", side).items()}
        seen |= named("5.10", side) | named("7.2", side)
        for name, fault in seen.items():
            assert fault.side is side
            assert not fault.what.endswith(".")
            assert "Linux" in fault.source, name
            assert fault.since is not None or fault.until is not None
        assert len(seen) >= 4
    assert not kernel_faults(None, Side.SOURCE)


def test_who_meets_what_differs() -> None:
    fault = named("6.8", Side.DESTINATION)["cache-registers-are-reset"]
    assert fault.meets({CLIDR: 0x82000023}, {CLIDR}, A57_R0)
    assert not fault.meets({CLIDR: 0x82000023}, (), A57_R0)  # equal, or swapped for the destination's own


def test_who_meets_what_hangs_on_the_core() -> None:
    fault = named("6.12", Side.DESTINATION)["fewer-counters-than-before"]
    assert fault.meets({PMCR: 0x41033000, MIDR_EL1: A57_R0}, (), N1)
    assert not fault.meets({PMCR: 0x41033000, MIDR_EL1: A57_R0}, (), A57_R3)
    assert not fault.meets({MIDR_EL1: A57_R0}, (), N1)  # it has no PMU


def test_who_meets_what_hangs_on_bits() -> None:
    fault = named("6.1", Side.DESTINATION)["counters-are-reset"]
    assert fault.meets({PMCR: 0x41033004}, (), N1)
    assert not fault.meets({PMCR: 0x41033001}, (), N1)
    mpam = named("6.12", Side.SOURCE)["mpam-was-shown"]
    assert mpam.meets({parse_register("ID_AA64PFR0_EL1"): 1 << 40}, (), N1)
    assert mpam.meets({parse_register("ID_AA64PFR1_EL1"): 1 << 16}, (), N1)
    assert not mpam.meets({parse_register("ID_AA64PFR0_EL1"): 0x11112222}, (), N1)
    nested = named("7.2", Side.DESTINATION)["nested-virtualization-is-taken-back"]
    assert nested.meets({parse_register("ID_AA64MMFR2_EL1"): 2 << 24}, (), N1)
