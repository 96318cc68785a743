"""A policy in words, for those who have to answer for it."""

from collections.abc import Iterator

from formats.arm.sysreg import describe
from proxy.policy.acceptance import Acceptance
from proxy.policy.policy import Mode, Policy
from proxy.policy.rules import Rule, RuleAction
from proxy.policy.whitelist import Pairing

_MODES = {
    Mode.REPAIR: "Only registers that the destination would refuse are swapped, and only those listed here.",
    Mode.BLIND: "Every invariant register takes the destination's value, listed or not.",
    Mode.OBSERVE: "Nothing is swapped, left out or refused; the report has what would be.",
}
_ACTIONS = {
    RuleAction.SWAP: "may take the destination's value",
    RuleAction.KEEP: "keeps the source's value; where the destination does not take that, the migration is refused",
    RuleAction.DROP: "may be left out where the destination does not have it",
    RuleAction.REFUSE: "has to be the same on both sides",
}


def in_words(policy: Policy) -> Iterator[str]:
    """Yield what a policy means, line by line."""
    yield f"Mode {policy.mode.value}: {_MODES[policy.mode]}"
    yield ""
    yield "Guests may come from a processor like the destination's own" + (", and:" if policy.whitelist else " only.")
    for pairing in policy.whitelist:
        yield f"  - {_pairing(pairing)}"
    yield ""
    if policy.rules.by_register:
        yield "Registers:"
        for register, rules in policy.rules.by_register.items():
            for rule in rules:
                yield f"  - {_rule(register, rule)}"
    else:
        yield "No register may be swapped."
    if policy.drop_harmless:
        yield "  - those that a guest cannot miss may be left out where the destination does not have them"
    yield "  - mitigations and hypercalls that the guest was told of are never lowered" + (
        " but where a rule above names them" if any(map(_lowers, policy.rules.by_register)) else ""
    )
    yield ""
    yield from _accepted(policy.accept)
    yield ""
    yield "A migration has to bring:"
    yield from (f"  - {line}" for line in _requirements(policy))


def _accepted(accept: Acceptance) -> Iterator[str]:
    if accept.lost_features is None:
        yield "A guest may lose any feature that a register above is swapped for. RISK: it may be using it"
    else:
        losses = ", ".join(f"{describe(register).name}.{field}" for register, field in sorted(accept.lost_features))
        yield f"A guest may lose, beside fields that a rule above names: {losses or 'no feature'}."
    if accept.errata is None:
        yield "A guest may meet any erratum that it has no workaround for. RISK: what the errata do"
    else:
        yield f"A guest without their workarounds may meet these errata: {', '.join(sorted(accept.errata)) or 'none'}."


def _pairing(pairing: Pairing) -> str:
    if pairing.destinations == pairing.sources:
        names = ", ".join(map(str, pairing.sources))
        text = f"each of these to each: {names}"
    elif pairing.destinations is None:
        text = f"from {_sources(pairing)} to any destination"
    else:
        text = f"from {_sources(pairing)} to {', '.join(map(str, pairing.destinations))}"
    return f"{text}  [{pairing.where}{': ' + pairing.reason if pairing.reason else ''}]"


def _sources(pairing: Pairing) -> str:
    return ", ".join("a stream without a processor id (TCG)" if one is None else str(one) for one in pairing.sources)


def _rule(register: int, rule: Rule) -> str:
    name = describe(register).name
    subject = name if rule.field is None else f"{name}.{rule.field}"
    return f"{subject} {_ACTIONS[rule.action]}  [{rule}]"


def _lowers(register: int) -> bool:
    return not describe(register).invariant and "KVM_REG_ARM" in describe(register).name


def _requirements(policy: Policy) -> Iterator[str]:
    require = policy.require
    if require.return_path:
        yield "a return path (live migrations)"
    else:
        yield "no return path. RISK: a source without one gives up its guest unheard"
    if require.vmdesc:
        yield "a vmdesc"
    limit = (
        "the default of device state"
        if require.device_state_limit is None
        else (f"{require.device_state_limit >> 20} MiB of device state")
    )
    yield f"at most {limit}"
    yield f"machine type {' or '.join(require.machines)}" if require.machines else "any machine type"
