"""Advice that is true: what a refusal advises is tried before it is printed."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from formats.arm.sysreg import parse_register
from proxy.judging.judge import Judge
from proxy.judging.verdict import Action, Registers, Verdict
from proxy.policy.acceptance import Acceptance, parse_errata, parse_losses
from proxy.policy.policy import Policy
from proxy.policy.rules import Rule, RuleAction, Rules
from proxy.policy.whitelist import Pairing
from proxy.settings.register_names import parse_source

_WHERE = "advice"


def would_go(judge: Judge, vcpus: Sequence[Registers], verdicts: Iterable[Verdict]) -> bool:
    """Tell whether a guest would go if all that its refusals advise were done; so the destination is asked again.

    Args:
        judge: The judge that refused it.
        vcpus: The guest's vCPUs.
        verdicts: The verdicts on them.

    Raises:
        KvmError: The destination's kernel cannot be asked.
    """
    policy = _followed(judge.policy, verdicts)
    if policy is None:
        return False
    lenient = judge.under(policy)
    return all(verdict.action is not Action.REFUSE for registers in vcpus for verdict in lenient.judge(registers))


def _followed(policy: Policy, verdicts: Iterable[Verdict]) -> Policy | None:
    """Return a policy with all that is advised; None if a refusal is left that no option allows."""
    whitelist, rules = list(policy.whitelist), dict(policy.rules.by_register)
    losses: list[str] = []
    for verdict in verdicts:
        if verdict.action is not Action.REFUSE:
            continue
        if not verdict.option and not verdict.losses:
            return None
        option, _, name = verdict.option.partition(" ")
        match option:
            case "--allow-midr":
                whitelist.append(Pairing(_WHERE, (parse_source(name, _WHERE),)))
            case "--allow-register":
                rules[parse_register(name)] = (Rule(_WHERE, RuleAction.SWAP),)
            case "--allow-drop":
                rules[parse_register(name)] = (Rule(_WHERE, RuleAction.DROP),)
        losses += verdict.losses
    accept = policy.accept | _accepting(losses)
    return replace(policy, whitelist=tuple(whitelist), rules=Rules(rules), accept=accept)


def _accepting(losses: list[str]) -> Acceptance:
    names: dict[str, list[str]] = {"--allow-loss": [], "--allow-erratum": []}
    for loss in losses:
        option, _, name = loss.partition(" ")
        names[option].append(name.strip('"'))
    return Acceptance(parse_losses(names["--allow-loss"], _WHERE), parse_errata(names["--allow-erratum"], _WHERE))
