"""Judging: policy, destination and the source's registers in, verdicts out."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from formats.arm.errata import all_errata
from formats.arm.id_fields import fields_of
from formats.arm.sysreg import MIDR_EL1
from formats.arm.vcpu_features import MARKS, VcpuFeature, kind_of, named
from formats.arm.vcpu_features import Kind as VcpuKind
from proxy.judging.harmless import harmless
from proxy.judging.interrupts import refused_interrupts, verdicts_on_interrupts
from proxy.judging.profile_acceptance import refused_by
from proxy.judging.register_comparison import Comparison
from proxy.judging.register_judge import verdicts_of
from proxy.judging.start_flags import qemu_cpu, turned_off
from proxy.judging.timer import verdict_on_timer
from proxy.judging.verdict import Action, Registers, Verdict
from proxy.policy.policy import Policy

if TYPE_CHECKING:
    from proxy.hosts.profile import HostProfile
    from proxy.hosts.started_qemu import StartedQemu
    from proxy.judging.trial import Trial


_UNCHANGED: Final[frozenset[tuple[int, int | None]]] = frozenset()
_MOST_KNOWN: Final = 256
"""vCPUs of so many kinds, that is with so many different registers, are remembered."""


class _View:
    """The destination for vCPUs of one kind, as its profile tells; what it was asked is remembered.

    Attributes:
        host: Its profile.
    """

    def __init__(self, host: "HostProfile") -> None:
        self.host = host
        self._comparison = Comparison(host)
        self._refused: dict[tuple[tuple[int, int | None], ...], dict[int, str]] = {}

    def differing(self, registers: Registers) -> list[tuple[int, int | None]]:
        """See `Comparison.differing`."""
        return self._comparison.differing(registers)

    def refused(self, registers: list[tuple[int, int | None]]) -> dict[int, str]:
        """Tell which of the registers that differ the destination does not take, and why, by id."""
        asked = tuple(registers)
        refused = self._refused.get(asked)
        if refused is None:
            if len(self._refused) >= _MOST_KNOWN:
                self._refused.clear()
            refused = self._refused[asked] = refused_by(self.host, registers)
        return refused


@dataclass(frozen=True, slots=True)
class Judge:
    """Knows the destination and the policy.

    Attributes:
        policy: What the operator vouches for.
        host: The destination; None when nothing is known of it, which only observing may be content with.
        trial: The destination's own kernel; None to tell from `host` what it takes.
    """

    policy: Policy
    host: "HostProfile | None"
    trial: "Trial | None" = None
    _views: dict[VcpuKind, _View | None] = field(init=False, repr=False, compare=False, default_factory=dict)
    _known: dict[tuple[object, ...], list[Verdict]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def for_kind(self, kind: VcpuKind) -> "HostProfile | None":
        """Return the destination as vCPUs of a kind find it; None when nothing is known of it for them."""
        view = self._view(kind)
        return None if view is None else view.host

    def refused(self, registers: Registers) -> dict[int, str]:
        """Tell which registers of a vCPU the destination does not take as they are, and why, by id."""
        if self.host is None:
            return {}
        unlike = self.unlike(registers)
        if unlike is not None:
            return {unlike.register: unlike.rule}
        view = self._view_for(registers)
        if view is None:
            return {verdict.register: verdict.rule for verdict in [self._unknown_kind(registers, self.host)]}
        if self.trial is None:
            refused = view.refused(view.differing(registers))
        else:
            refused = self.trial.refused(registers.items(), view.host, _UNCHANGED)
        if self.host.interrupts is not None:
            refused = refused | refused_interrupts(self.host.interrupts, registers)
        return refused

    @property
    def started(self) -> "StartedQemu | None":
        """The destination's QEMU; None where it was not looked at, and is taken to be started as the guest needs it."""
        return None if self.trial is None else self.trial.started

    def unlike(self, registers: Registers) -> Verdict | None:
        """Refuse a guest with features that the destination's QEMU turns off; None where it turns off none of them."""
        if self.started is None or not (missing := self.started.off & kind_of(registers)):
            return None
        offered = frozenset[VcpuFeature]() if self.host is None else self.host.kinds[0]
        return Verdict(
            registers.vcpu,
            MARKS[min(missing)],
            Action.REFUSE,
            registers.get(MARKS[min(missing)]),
            None,
            f"the guest's vCPUs have {named(missing)}, which the destination's QEMU turns off ({self.started})",
            advice=f"start it with {qemu_cpu(turned_off(offered, kind_of(registers)))}",
        )

    def ahead(self, registers: Registers) -> Verdict | None:
        """Refuse a guest for what can be known of its source before its stream shows it; None for nothing."""
        unlike = self.unlike(registers)
        if unlike is not None or self.host is None:
            return unlike
        timer = verdict_on_timer(self.policy, registers, self.host)
        return timer if timer is not None and timer.action is Action.REFUSE else None

    def fresh(self) -> "Judge":
        """Return a judge for one migration; one that asks the kernel has scratch VMs of its own, to be closed."""
        if self.trial is None:
            return self
        return self._with(trial=self.trial.fresh())

    def under(self, policy: Policy) -> "Judge":
        """Return a judge of the same destination by another policy."""
        return self._with(policy=policy)

    def _with(self, **changes: Any) -> "Judge":  # noqa: ANN401
        """Return a judge that knows of the destination what this one does."""
        judge = replace(self, **changes)
        object.__setattr__(judge, "_views", self._views)
        return judge

    def open(self, address: tuple[str, int] | None = None) -> None:
        """Make ready to ask the kernel, which takes milliseconds, while the guest still runs.

        Args:
            address: Where the destination's QEMU listens, host as a number and port, so that it can be looked at.

        Raises:
            KvmError: There is no arm64 KVM here, or it does not have a feature.
        """
        if self.trial is not None and self.host is not None:
            self.trial.open(self.host, address)

    def close(self) -> None:
        """Give back what `open` took, if anything."""
        if self.trial is not None:
            self.trial.close()

    def prepare(self) -> None:
        """Load the tables that verdicts need, so that no guest stands while they are read."""
        fields_of(MIDR_EL1)
        harmless()
        all_errata()
        for kind in () if self.host is None else self.host.kinds:
            self._view(kind)

    def judge(self, registers: Registers) -> list[Verdict]:
        """Return the verdicts on one vCPU: the processor's first, then in the order of the register ids."""
        if self.host is None:
            return []
        unlike = self.unlike(registers)
        if unlike is not None:
            return [unlike]
        view = self._view_for(registers)
        if view is None:
            return [self._unknown_kind(registers, self.host)]
        verdicts = self._judged(registers, view)
        if self.host.interrupts is not None:
            verdicts += verdicts_on_interrupts(self.policy, registers, self.host.interrupts)
        if (timer := verdict_on_timer(self.policy, registers, self.host)) is not None:
            verdicts.append(timer)
        return verdicts

    def _judged(self, registers: Registers, view: _View) -> list[Verdict]:
        # Of a register that is the host's own, and that it takes, there is nothing to say.
        host, looked_at = view.host, view.differing(registers)
        if self.trial is None:
            return self._recalled(registers, looked_at, view.refused(looked_at), host)
        held: dict[int, int | None] = dict(registers.items())
        refused = self.trial.refused(held.items(), host, _UNCHANGED)
        about = {*refused, *(register for register, _ in looked_at)}
        verdicts = self._recalled(registers, [(register, held[register]) for register in sorted(about)], refused, host)
        if all(verdict.action is not Action.REFUSE for verdict in verdicts):
            verdicts += self._still_refused(self.trial, registers, held, verdicts, host)
        return verdicts

    def _view_for(self, registers: Registers) -> "_View | None":
        """Return the destination as it is started, or as it has to be for the guest."""
        if self.started is None or self.host is None:
            return self._view(kind_of(registers))
        return self._view(self.host.kinds[0] - self.started.off)

    def _view(self, kind: VcpuKind) -> "_View | None":
        if kind not in self._views:
            assert self.host is not None
            host = self.host.for_kind(kind)
            self._views[kind] = None if host is None else _View(host)
        return self._views[kind]

    def _unknown_kind(self, registers: Registers, host: "HostProfile") -> Verdict:
        """Refuse a vCPU of a kind that the profile does not know; its verdicts would be about another vCPU."""
        kind, kinds = kind_of(registers), host.kinds
        feature = min(kind ^ kinds[0])
        off = turned_off(kinds[0], kind)
        started = f"a guest started there with {qemu_cpu(off)}" if kind < kinds[0] else "a guest like it, started there"
        return Verdict(
            registers.vcpu,
            MARKS[feature],
            Action.REFUSE,
            registers.get(MARKS[feature]),
            None,
            f"its vCPU has {named(kind)}, and the profile of the destination knows vCPUs with "
            f"{'; or '.join(map(named, kinds))}",
            advice="make the destination's profile there with 'host probe', which asks about every kind; or add the "
            f"stream of {started} to 'host learn'",
        )

    def _recalled(
        self,
        registers: Registers,
        looked_at: list[tuple[int, int | None]],
        refused: dict[int, str],
        host: "HostProfile",
    ) -> list[Verdict]:
        """Return the verdicts; vCPUs that are alike in all that counts are judged once, for the guest stands."""
        conditions = [one.of for register, _ in looked_at if (one := harmless().get(register)) is not None]
        read = ((register in registers, registers.get(register)) for register in (MIDR_EL1, *conditions))
        alike = host.vcpu_features, tuple(looked_at), tuple(refused.items()), tuple(read)
        verdicts = self._known.get(alike)
        if verdicts is None:
            verdicts = list(verdicts_of(self.policy, registers, looked_at, host, refused))
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[alike] = verdicts
        return [verdict._replace(vcpu=registers.vcpu) for verdict in verdicts]

    def _still_refused(
        self,
        trial: "Trial",
        registers: Registers,
        held: dict[int, int | None],
        verdicts: list[Verdict],
        host: "HostProfile",
    ) -> Iterator[Verdict]:
        """Try what would go on; a kernel may refuse a register for the sake of another."""
        changed = {verdict.register: verdict for verdict in verdicts if verdict.action in (Action.SWAP, Action.DROP)}
        if not changed:
            return
        repaired = held.copy()
        for register, verdict in changed.items():
            if verdict.action is Action.SWAP:
                repaired[register] = verdict.new
            else:
                del repaired[register]
        changes = frozenset((verdict.register, verdict.new) for verdict in changed.values())
        for register, why in trial.refused(repaired.items(), host, changes).items():
            yield Verdict(registers.vcpu, register, Action.REFUSE, registers.get(register), None, _STILL, why)


_STILL = "the destination does not take it once the changes are made; no rule can change that"
