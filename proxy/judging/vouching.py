"""What a whitelisted processor and a listed register do not vouch for: losses and errata, each named by itself."""

from collections.abc import Iterator

from formats.arm.errata import unguarded_errata
from formats.arm.id_fields import IdField, Order
from proxy.judging.verdict import Action, Verdict
from proxy.policy.policy import Mode, Policy


def lost_fields(verdict: Verdict) -> Iterator[IdField]:
    """Yield the fields of which the destination has less than the guest was told."""
    if verdict.old is None or verdict.new is None:
        return
    for field in verdict.fields:
        if field.order is Order.LOWER_SAFE and field.value(verdict.new) < field.value(verdict.old):
            yield field


def with_losses(policy: Policy, verdict: Verdict) -> Verdict:
    """Refuse a swap by which the guest loses what the policy does not name; a refusal says what it would lose, too.

    A rule for the field itself names it; mode blind asks for no names.
    """
    if policy.mode is Mode.BLIND or verdict.action not in (Action.SWAP, Action.REFUSE):
        return verdict
    if verdict.action is Action.REFUSE and not verdict.option:
        return verdict
    unnamed = [
        field
        for field in lost_fields(verdict)
        if not policy.accept.loss(verdict.register, field.name)
        and ((rule := policy.rules.for_field(verdict.register, field.name)) is None or rule.field is None)
    ]
    if not unnamed:
        return verdict
    losses = tuple(f"--allow-loss {verdict.name}.{field.name}" for field in unnamed)
    if verdict.action is Action.REFUSE:
        return verdict._replace(losses=losses)
    assert verdict.old is not None
    assert verdict.new is not None
    what = ", ".join(one.change(verdict.old, verdict.new) for one in unnamed)
    return verdict._replace(
        action=Action.REFUSE,
        rule=f"the guest would lose {what}, and the policy does not name that",
        advice=f"if it can do without, name what it loses: {', '.join(losses)}, or accept.lost_features in the policy",
        losses=losses,
    )


def with_errata(policy: Policy, verdict: Verdict) -> Verdict:
    """Refuse a processor with errata that the guest is not prepared for and the policy does not name."""
    if policy.mode is Mode.BLIND or verdict.old is None or verdict.new is None:
        return verdict
    unnamed = [
        erratum for erratum in unguarded_errata(verdict.old, verdict.new) if not policy.accept.erratum(str(erratum))
    ]
    if not unnamed:
        return verdict
    losses = tuple(f'--allow-erratum "{erratum}"' for erratum in unnamed)
    if verdict.action is Action.REFUSE:
        return verdict._replace(losses=losses)
    names = ", ".join(map(str, unnamed))
    return verdict._replace(
        action=Action.REFUSE,
        rule=f"the guest has no workaround on for errata of the destination's processor: {names}",
        advice=f"if it can live with that, name them: {', '.join(losses)}, or accept.errata in the policy",
        losses=losses,
    )
