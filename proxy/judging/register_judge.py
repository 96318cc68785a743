"""Judging registers: what is known of them and of the policy in, a verdict on each out."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from formats.arm.id_fields import differing
from formats.arm.midr import parse_midr_el1
from formats.arm.psci import PSCI_VERSION, lost_calls, version_text
from formats.arm.sysreg import MIDR_EL1, Kind, describe
from proxy.judging.harmless import harmless
from proxy.judging.profile_acceptance import NO_SUCH_REGISTER
from proxy.judging.verdict import Action, Registers, Verdict
from proxy.judging.vouching import with_errata, with_losses
from proxy.policy.policy import Mode, Policy
from proxy.policy.rules import RuleAction
from proxy.policy.whitelist import pairing_for
from proxy.settings.register_names import NO_MIDR

if TYPE_CHECKING:
    from proxy.hosts.profile import HostProfile


def verdicts_of(
    policy: Policy,
    registers: Registers,
    looked_at: list[tuple[int, int | None]],
    host: "HostProfile",
    refused: dict[int, str],
) -> Iterator[Verdict]:
    """Yield the verdicts on one vCPU's registers: the processor's first, then in the order of the register ids.

    Args:
        policy: What the operator vouches for.
        registers: The vCPU.
        looked_at: Ids and values of the registers that there may be something to say about.
        host: The destination, as vCPUs of its kind find it.
        refused: What the destination does not take, and why, by id.
    """
    processor = _processor(policy, registers, host)
    if processor is not None:
        yield with_errata(policy, processor)
    for register, value in looked_at:
        why = refused.get(register)
        own = host.values.get(register)
        if register == MIDR_EL1 and processor is not None:
            continue
        if why == NO_SUCH_REGISTER:
            yield _missing(policy, registers, register, value)
        elif own is None or value is None or own == value:
            if why is not None:
                rule = _OWN if own == value else _NO_WAY
                yield Verdict(registers.vcpu, register, Action.REFUSE, value, own, rule, why)
        else:
            verdict = with_losses(policy, difference(policy, registers.vcpu, register, value, own, why))
            yield with_errata(policy, verdict) if register == MIDR_EL1 else verdict


def _processor(policy: Policy, registers: Registers, host: "HostProfile") -> Verdict | None:
    """Refuse a source processor that is neither the destination's own nor whitelisted."""
    midr = registers.get(MIDR_EL1)
    if midr == host.midr or pairing_for(policy.whitelist, midr, host.midr) is not None:
        return None
    if midr is None:
        what = "the stream holds no processor id (a TCG guest)"
    else:
        what = f"processor id {midr:#x} ({parse_midr_el1(midr)})"
    listed = ", ".join(map(str, policy.whitelist)) or "nothing"
    word = NO_MIDR if midr is None else f"{midr:#x}"
    return Verdict(
        registers.vcpu,
        MIDR_EL1,
        Action.REFUSE,
        midr,
        host.midr,
        f"{what}, and the whitelist has {listed}",
        advice="if that processor is close enough to the destination's, add it: "
        f'--allow-midr {word}, or whitelist.midr = ["{word}"] in the policy',
        option=f"--allow-midr {word}",
    )


def _missing(policy: Policy, registers: Registers, register: int, value: int | None) -> Verdict:
    """Judge a register that the destination does not have: its QEMU would not load the list."""

    def verdict(action: Action, rule: str) -> Verdict:
        return Verdict(registers.vcpu, register, action, value, None, rule, NO_SUCH_REGISTER)

    entry = harmless().get(register)
    if entry is not None and policy.drop_harmless:
        holds = entry.holds(registers.get)
        if holds:
            return verdict(Action.DROP, f"harmless: {entry.reason}")
        if holds is None and entry.of in registers:
            return verdict(Action.DROP, f"harmless if {entry.condition} then: {entry.reason}")
    kind = describe(register).kind
    if kind in (Kind.FIRMWARE, Kind.FEATURE_BITMAP):
        return verdict(Action.REFUSE, _NOT_LEFT_OUT)
    rule = policy.rules.for_register(register)
    if rule is not None and rule.action is RuleAction.DROP:
        return verdict(Action.DROP, str(rule))
    option = f"--allow-drop {describe(register).name}"
    return verdict(Action.REFUSE, "the destination's QEMU does not load a list with it")._replace(
        advice=f"if the guest can do without, list it: {option}, or registers.drop in the policy; or use a source "
        "with the same kernel and features",
        option=option,
    )


def difference(policy: Policy, vcpu: int, register: int, old: int, new: int, why: str | None) -> Verdict:
    """Judge a register that the destination has with another value.

    Args:
        policy: What the operator vouches for.
        vcpu: The vCPU's index.
        register: The register.
        old: The source's value.
        new: The destination's.
        why: Why the destination does not take it; None if it does.
    """

    def verdict(action: Action, rule: str) -> Verdict:
        return Verdict(vcpu, register, action, old, new, rule, why or "")

    fields = [one.name for one in differing(register, old, new)]
    rules = {name: policy.rules.for_field(register, name) for name in fields}
    strict = next((rule for rule in rules.values() if rule and rule.action is RuleAction.REFUSE), None)
    if strict is not None:
        return verdict(Action.REFUSE, f"{strict}: it has to be the same on both sides")
    kept = next((rule for rule in rules.values() if rule and rule.action is RuleAction.KEEP), None)
    invariant = describe(register).invariant
    if why is None and (kept is not None or not invariant or policy.mode is not Mode.BLIND):
        return verdict(Action.ACCEPT, "the destination takes it")
    if kept is not None:
        return verdict(Action.REFUSE, f"{kept}: it keeps its value, which the destination does not take")
    swaps = {name: rule for name, rule in rules.items() if rule is not None and rule.action is RuleAction.SWAP}
    if invariant and policy.mode is Mode.BLIND:
        return verdict(Action.SWAP, "mode blind")
    if len(swaps) < len(rules) or not rules:
        return _unlisted(verdict(Action.REFUSE, ""), [name for name in fields if name not in swaps])
    pairing = pairing_for(policy.whitelist, old, new) if register == MIDR_EL1 else None
    if pairing is not None:
        return verdict(Action.SWAP, pairing.rule(old))
    return verdict(Action.SWAP, "; ".join(dict.fromkeys(map(str, swaps.values()))))


_OWN = "the destination does not take even its own value; it may have changed since it was probed"
_NO_WAY = "the destination does not take the guest's own state; no rule can change that"
_NOT_LEFT_OUT = "what the firmware told the guest is never lowered or left out; use a destination that has it"
_NOT_LOWERED = "what the firmware told the guest is never lowered, unless a rule names it"


def _firmware_advice(verdict: Verdict) -> str:
    """Say by which rule a value of the firmware may change, and what the guest would lose by it."""
    lost = ""
    if verdict.register == PSCI_VERSION and verdict.old is not None and verdict.new is not None:
        calls = " and ".join(lost_calls(verdict.old, verdict.new))
        versions = f"PSCI {version_text(verdict.old)} to {version_text(verdict.new)}"
        lost = f" ({versions}: {f'it would lose {calls}' if calls else 'it would lose no call'})"
    return (
        f"use a destination that has it or, if the guest can do with that{lost}, name it in the policy: "
        f'[[rule]] with registers = ["{verdict.name}"], action = "swap" and a reason'
    )


def _unlisted(verdict: Verdict, fields: list[str]) -> Verdict:
    """Say that no rule lets these fields of a register change, and what would."""
    register = describe(verdict.register)
    if register.kind in (Kind.FIRMWARE, Kind.FEATURE_BITMAP):
        return verdict._replace(rule=_NOT_LOWERED, advice=_firmware_advice(verdict))
    if not register.invariant:
        return verdict._replace(rule=_NO_WAY)
    option = f"--allow-register {register.name}"
    return verdict._replace(
        rule=f"{verdict.old:#x} on the source and {verdict.new:#x} on the destination, and the policy does not list "
        f"{', '.join(fields)}",
        advice=f"if the guest can do with that, list it: {option}, or registers.swap in the policy",
        option=option,
    )
