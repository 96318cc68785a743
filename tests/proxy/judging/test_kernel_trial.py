"""What the trial asks of KVM, and what it believes without asking again."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from formats.arm.sysreg import MIDR_EL1, parse_register
from proxy.hosts.profile import HostProfile
from proxy.judging import kernel_trial
from proxy.judging.kernel_trial import KernelTrial
from proxy.judging.profile_acceptance import NO_SUCH_REGISTER
from tests.proxy.helpers import R0, R3

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from proxy.hosts.kvm import Feature

CTR, PFR0, TTBR0, FAR = (parse_register(name) for name in ("CTR_EL0", "ID_AA64PFR0_EL1", "TTBR0_EL1", "FAR_EL1"))
NEWER_STATE = parse_register("TCR2_EL1")
OWN = {MIDR_EL1: R3, CTR: 5, PFR0: 0x22, TTBR0: 0, FAR: 0}
LOWER = 0x12
INVAL = "this host's KVM answers EINVAL"
HOST = HostProfile("it", OWN)


class Vcpu:
    """A vCPU that takes its own MIDR_EL1 only, two values of ID_AA64PFR0_EL1, and any CTR_EL0 beside the lower one."""

    def __init__(self) -> None:
        self.values = dict(OWN)
        self.written: list[tuple[int, int]] = []

    def registers(self) -> list[int]:
        return sorted(OWN)

    def get(self, register: int) -> int:
        if register == FAR:
            raise OSError(errno.EINVAL, "not given out")
        return self.values[register]

    def set(self, register: int, value: int) -> int:
        self.written.append((register, value))
        refused = {
            MIDR_EL1: value != R3,
            PFR0: value not in (0x22, LOWER),
            CTR: value != 5 or self.values[PFR0] == LOWER,
        }
        if refused.get(register):
            return errno.EINVAL
        self.values[register] = value
        return 0


@pytest.fixture
def vcpu(monkeypatch: pytest.MonkeyPatch) -> Vcpu:
    made = Vcpu()

    @contextmanager
    def scratch_vcpu(_features: Iterable[Feature]) -> Iterator[Vcpu]:
        yield made

    monkeypatch.setattr(kernel_trial, "scratch_vcpu", scratch_vcpu)
    return made


@pytest.fixture
def trial(vcpu: Vcpu) -> KernelTrial:
    trial = KernelTrial()
    trial.open(HOST)
    vcpu.written.clear()
    return trial


def asked(
    trial: KernelTrial, other: dict[int, int | None], changes: dict[int, int | None] | None = None
) -> dict[int, str]:
    values = dict(sorted({**OWN, **other}.items()))
    return trial.refused(values.items(), HOST, frozenset((changes or {}).items()))


def test_what_is_the_hosts_own_is_not_asked_while_a_guest_stands(vcpu: Vcpu, trial: KernelTrial) -> None:
    assert asked(trial, {}) == {}
    assert vcpu.written == [(FAR, 0)]  # KVM does not give it out, so it is asked once
    assert asked(trial, {TTBR0: 7}) == {}
    assert vcpu.written[1:] == [(TTBR0, 7)]
    assert asked(trial, {TTBR0: 7}) == {}
    assert len(vcpu.written) == 2


def test_what_was_refused_and_is_now_the_hosts_own_changes_no_answer(vcpu: Vcpu, trial: KernelTrial) -> None:
    assert asked(trial, {MIDR_EL1: R0}) == {MIDR_EL1: INVAL}
    assert asked(trial, {}, {MIDR_EL1: R3}) == {}
    assert asked(trial, {MIDR_EL1: R0}) == {MIDR_EL1: INVAL}
    assert vcpu.written == [(MIDR_EL1, R0), (FAR, 0)]


def test_beside_another_value_that_is_taken_all_is_asked_anew(vcpu: Vcpu, trial: KernelTrial) -> None:
    """KVM may refuse a register for the sake of another, even one that has the host's own value."""
    assert asked(trial, {PFR0: LOWER, MIDR_EL1: R0}) == {MIDR_EL1: INVAL, CTR: INVAL}
    # First alone, then in the order of the list.
    assert vcpu.written[:2] == [(MIDR_EL1, R0), (PFR0, LOWER)]
    assert [register for register, _ in vcpu.written[3:]] == sorted(OWN)
    before = len(vcpu.written)
    assert asked(trial, {PFR0: LOWER}, {MIDR_EL1: R3}) == {CTR: INVAL}
    assert vcpu.written[before:] == [(MIDR_EL1, R3)]


def test_the_next_guest_finds_the_vcpu_as_it_was(trial: KernelTrial) -> None:
    assert asked(trial, {PFR0: LOWER}) == {CTR: INVAL}
    assert asked(trial, {TTBR0: 9}) == {}
    assert asked(trial, {PFR0: LOWER, TTBR0: 9}) == {CTR: INVAL}
    assert asked(trial, {CTR: 6}) == {CTR: INVAL}


def test_a_register_that_is_left_out_may_matter(vcpu: Vcpu, trial: KernelTrial) -> None:
    assert asked(trial, {}, {CTR: None}) == {}
    assert [register for register, _ in vcpu.written] == sorted(OWN)


def test_what_is_not_listed_or_not_known_is_not_tried(vcpu: Vcpu, trial: KernelTrial) -> None:
    assert asked(trial, {NEWER_STATE: 1, TTBR0: None}) == {NEWER_STATE: NO_SUCH_REGISTER}
    assert vcpu.written == [(FAR, 0)]
