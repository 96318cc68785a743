"""Interrupt controllers: what a destination's QEMU would abort for is refused by name, or swapped where it may be."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import pytest

from formats.arm.gic import GITS_IIDR, ICC_CTLR_EL1
from formats.arm.sysreg import MIDR_EL1, parse_register
from formats.vmstate.interrupts import HeldValue, interrupts_of
from formats.vmstate.vcpus import open_vcpus
from proxy.errors import RefusedError
from proxy.hosts.host_registers import HostRegisters
from proxy.hosts.interrupts import HostInterrupts
from proxy.hosts.profile_file import load_profile
from proxy.hosts.profile_text import write_profile
from proxy.hosts.taken import TakenField
from proxy.judging.check import check
from proxy.judging.judge import Judge
from proxy.judging.verdict import Action
from proxy.policy.acceptance import parse_losses
from proxy.policy.policy import DEFAULT_RULES, Mode, Policy
from proxy.policy.rules import Rule, RuleAction, Rules
from proxy.rewriter.rewriter import Rewriter
from tests.proxy.helpers import EVERYTHING, capture, device_state, live, profile

if TYPE_CHECKING:
    from pathlib import Path

    from formats.vmstate.device_state import DeviceState

STREAM = live(capture("kvm-trixie-a57r0-smp2"))
TAKEN = TakenField("PRIbits", 8, 3, frozenset({0, 1, 2, 3})), TakenField("IDbits", 11, 3, frozenset({0}))
GIC = HostInterrupts((3,), 0x8C00, TAKEN, (0,))
HOST = replace(profile("kvm-trixie-a57r0"), interrupts=GIC)


def own_state() -> DeviceState:
    state = device_state(STREAM)
    return msgspec.structs.replace(state, held=bytearray(state.held))


def patched(register: int, value: int, vcpu: int = 0) -> bytes:
    """The stream with another value in the section of an interrupt controller."""
    state = own_state()
    interrupts_of(state)[vcpu][register].replace(value)
    return STREAM[: state.offset] + bytes(state.held) + STREAM[state.offset + len(state.held) :]


def passed(stream: bytes, policy: Policy | None = None, host_interrupts: HostInterrupts | None = GIC) -> bytes:
    rewriter = Rewriter(Judge(policy or Policy(), replace(HOST, interrupts=host_interrupts)), live=True)
    return b"".join(map(bytes, rewriter.feed(stream)))


def naming(*fields: str) -> Policy:
    rules = tuple(Rule("listed", RuleAction.SWAP, field) for field in fields)
    return Policy(rules=Rules({**DEFAULT_RULES.by_register, ICC_CTLR_EL1: rules}))


def test_each_vcpu_has_its_own_interface_and_the_first_the_its() -> None:
    first, second = open_vcpus(own_state())
    assert (first.get(ICC_CTLR_EL1), second.get(ICC_CTLR_EL1)) == (0x8C00, 0x8C00)
    assert (first.get(GITS_IIDR), second.get(GITS_IIDR)) == (0x4B00043B, None)
    # They are not in the list of the `cpu` section, and do not make it another.
    assert ICC_CTLR_EL1 not in first
    assert ICC_CTLR_EL1 not in dict(first.items())


def test_what_is_the_guests_stays_and_other_vcpus_stay() -> None:
    first, second = open_vcpus(own_state())
    held = first.elsewhere[ICC_CTLR_EL1]
    assert isinstance(held, HeldValue)
    held.held[held.position + held.size - 1] = 3  # CBPR, EOImode
    assert first.get(ICC_CTLR_EL1) == 0x8C00
    first[ICC_CTLR_EL1] = 0x8400
    assert (first.get(ICC_CTLR_EL1), held.held[held.position + held.size - 1]) == (0x8400, 3)
    assert second.get(ICC_CTLR_EL1) == 0x8C00


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (0x8D00, "PRIbits 5 -> 4"),
        (0x9400, "IDbits 2 -> 1"),
        (0x0C00, "A3V 0 -> 1"),
        (0xCC00, "SEIS 1 -> 0"),
    ],
)
@pytest.mark.parametrize("vcpu", [0, 1])
def test_what_kvm_refuses_is_refused_by_name(value: int, why: str, vcpu: int) -> None:
    with pytest.raises(RefusedError, match=r"section 'arm_gicv3' instance 0: ICC_CTLR_EL1: " + why):
        passed(patched(ICC_CTLR_EL1, value, vcpu))


@pytest.mark.parametrize("value", [0x8C00, 0x8B00, 0x8800, 0x8400])
def test_what_kvm_takes_passes_as_it_is(value: int) -> None:
    stream = patched(ICC_CTLR_EL1, value)
    assert passed(stream) == stream


def test_an_its_of_another_revision_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"section 'arm_gicv3_its' .*GITS_IIDR: Revision 2, and .* takes 0"):
        passed(patched(GITS_IIDR, 0x4B00243B))


def test_a_listed_field_is_swapped_in_place() -> None:
    """A loss has to be named, too: of PRIbits and IDbits the destination has less."""
    stream = patched(ICC_CTLR_EL1, 0x0C00)
    assert passed(stream, naming("A3V")) == STREAM
    more = patched(ICC_CTLR_EL1, 0x9D00, 1)
    with pytest.raises(RefusedError, match="does not list IDbits"):
        passed(more, naming("PRIbits"))
    assert passed(more, naming("PRIbits", "IDbits")) == STREAM
    with pytest.raises(RefusedError, match="the guest would lose"):
        passed(more, naming(None))  # type: ignore[arg-type]
    whole = Rules({**DEFAULT_RULES.by_register, ICC_CTLR_EL1: (Rule("listed", RuleAction.SWAP),)})
    losses = parse_losses(["ICC_CTLR_EL1.PRIbits", "ICC_CTLR_EL1.IDbits"], "here")
    accepting = replace(Policy(rules=whole), accept=replace(EVERYTHING, lost_features=losses))
    assert passed(more, accepting) == STREAM


def test_of_what_is_not_known_nothing_is_said() -> None:
    stream = patched(GITS_IIDR, 0x4B00243B)
    assert passed(stream, host_interrupts=None) == stream
    assert passed(stream, host_interrupts=HostInterrupts((2,))) == stream


def test_without_a_vmdesc_they_are_left_alone_and_the_report_says_so() -> None:
    stream = live(capture("kvm-trixie-a57r3-no-vmdesc"))
    for interrupts, says in ((GIC, ("'arm_gicv3' instance 0", "'arm_gicv3_its' instance 0")), (None, ())):
        rewriter = Rewriter(Judge(Policy(mode=Mode.OBSERVE), replace(HOST, interrupts=interrupts)), live=True)
        pieces = [*rewriter.feed(stream), *rewriter.vmdesc_overdue(last_word=True)]
        assert b"".join(map(bytes, pieces)) == stream
        assert rewriter.report.not_looked_at == says


def test_a_check_tells_it_of_streams_and_of_hosts() -> None:
    less = replace(HOST, interrupts=replace(GIC, icc_ctlr=0x8B00))
    answer = check(Judge(Policy(), less), [HostRegisters(HOST)])
    (verdict,) = answer.verdicts
    assert (verdict.name, verdict.action, verdict.why) == ("ICC_CTLR_EL1", Action.REFUSE, "PRIbits 4 -> 3")
    assert (answer.direct, answer.goes) == (False, False)
    assert answer.options == ["--allow-register ICC_CTLR_EL1"]
    assert answer.losses == ["--allow-loss ICC_CTLR_EL1.PRIbits"]
    assert check(Judge(Policy(), HOST), [HostRegisters(less)]).direct


def test_a_profile_keeps_them(tmp_path: Path) -> None:
    path = tmp_path / "host.toml"
    path.write_text(write_profile(HOST))
    assert load_profile(path).interrupts == GIC
    assert MIDR_EL1 in load_profile(path).values
    assert parse_register("ICC_CTLR_EL1") not in load_profile(path).values
