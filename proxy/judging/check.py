"""Whether a guest can go to a destination: the judge's answer, put together for people and for schedulers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from formats.arm.sysreg import MIDR_EL1, describe
from formats.arm.vcpu_features import kind_of
from proxy.hosts.host_registers import HostRegisters
from proxy.judging.advice import would_go
from proxy.judging.explain import (
    Errata,
    compare_errata,
    host_differences,
    lost_features,
    met_kernel_faults,
    what_the_guest_sees,
)
from proxy.judging.judge import Judge
from proxy.judging.profile_acceptance import is_assumed
from proxy.judging.start_flags import Start, start_for
from proxy.judging.verdict import Action, Registers, Verdict, verdict_as_dict

if TYPE_CHECKING:
    from formats.arm.errata import Erratum
    from formats.arm.kernel_faults import KernelFault
    from formats.arm.vcpu_features import Kind as VcpuKind

SCHEMA_VERSION = 1


class Answer(msgspec.Struct, frozen=True):
    """What came of a check.

    Attributes:
        verdicts: The verdicts on all vCPUs.
        vcpus: How many there are.
        same: The registers that are equal on both sides, in every vCPU, by id.
        kinds: The kinds of the guest's vCPUs.
        start: How the destination's QEMU has to be started for it; None where that is not known.
        direct: Whether the destination takes the guest without the proxy; None where that is not known.
        assumed: Whether that is not known because its profile does not tell which values its KVM takes.
        lost: The features of which the destination has less than the guest was told.
        differences: In what else the hosts differ.
        errata: How the processors' errata differ.
        kernel_faults: Known faults of the hosts' kernels that the guest meets.
        strict: Whether it cannot go for them.
        helped: Whether the guest would go with all the options that the verdicts name.
    """

    verdicts: tuple[Verdict, ...]
    vcpus: int
    same: tuple[int, ...]
    kinds: "tuple[VcpuKind, ...]"
    start: Start | None
    direct: bool | None
    lost: tuple[str, ...]
    differences: tuple[str, ...]
    errata: Errata
    kernel_faults: "tuple[KernelFault, ...]" = ()
    strict: bool = False
    helped: bool = False
    assumed: bool = False

    @property
    def judged(self) -> bool:
        """Whether there was anything to judge."""
        return self.vcpus > 0

    @property
    def goes(self) -> bool:
        """Whether the guest can go through the proxy; what is not judged is not held up."""
        taken = all(verdict.action is not Action.REFUSE for verdict in self.verdicts)
        return taken and not (self.strict and self.kernel_faults)

    @property
    def options(self) -> list[str]:
        """The options that would allow what is refused; none where they would not be enough."""
        names: dict[str, dict[str, None]] = {}
        for verdict in self.verdicts:
            if verdict.option and self.helped:
                option, _, name = verdict.option.partition(" ")
                names.setdefault(option, {})[name] = None
        return [f"{option} {','.join(found)}" for option, found in names.items()]

    @property
    def losses(self) -> list[str]:
        """The options that name what the guest would lose or meet, one for each; none where they are not enough."""
        found = (loss for verdict in self.verdicts for loss in verdict.losses if self.helped)
        return list(dict.fromkeys(found))

    def registers(self, action: Action) -> list[int]:
        """Return the registers that an action is taken on, by id, in the order of the verdicts."""
        return list(dict.fromkeys(verdict.register for verdict in self.verdicts if verdict.action is action))

    def as_dict(self) -> dict[str, Any]:
        """Return the answer as it goes into JSON."""
        return {
            "judged": self.judged,
            "direct": self.direct if self.judged else None,
            "goes": self.goes if self.judged else None,
            "vcpus": self.vcpus,
            "vcpu_features": [sorted(kind) for kind in self.kinds],
            "start": None if self.start is None else self.start.as_dict(),
            "same": [describe(register).name for register in self.same],
            "verdicts": [
                verdict_as_dict(verdict)
                | {"guest_sees": what_the_guest_sees(verdict), "option": (self.helped and verdict.option) or None}
                for verdict in self.verdicts
            ],
            "options": [*self.options, *self.losses],
            "lost_features": list(self.lost),
            "host_differences": list(self.differences),
            "errata": {
                "new": [_erratum(erratum, self.errata) for erratum in self.errata.new],
                "gone": [_erratum(erratum, self.errata) for erratum in self.errata.gone],
            },
            "kernel_faults": [
                {"name": fault.name, "side": fault.side.value, "what": fault.what} for fault in self.kernel_faults
            ],
        }


def check(judge: Judge, vcpus: Sequence[Registers], *, strict: bool = False) -> Answer:
    """Judge all vCPUs of a guest.

    Args:
        judge: Knows the destination.
        vcpus: Those of a stream, or one that starts on a host.
        strict: Whether known faults of the kernels are reason enough for it not to go.
    """
    assert judge.host is not None
    verdicts = [verdict for registers in vcpus for verdict in judge.judge(registers)]
    judged = {verdict.register for verdict in verdicts}
    equal = {
        register
        for registers in vcpus
        if (own := judge.for_kind(kind_of(registers))) is not None
        for register, value in registers.items()
        if value is not None and own.values.get(register) == value and register not in judged
    }
    direct, assumed = _direct(judge, vcpus)
    midr = next((registers.get(MIDR_EL1) for registers in vcpus), None)
    kept = {verdict.register for verdict in verdicts if verdict.action is Action.ACCEPT}
    profile = next((registers.profile for registers in vcpus if isinstance(registers, HostRegisters)), None)
    kinds = tuple(dict.fromkeys(kind_of(registers) for registers in vcpus))
    return Answer(
        verdicts=tuple(verdicts),
        vcpus=len(vcpus),
        same=tuple(sorted(equal)),
        kinds=kinds,
        start=start_for(judge.host, kinds),
        direct=direct,
        lost=tuple(lost_features(verdicts)),
        differences=() if profile is None else tuple(host_differences(profile, judge.host)),
        errata=compare_errata(midr, judge.host.midr),
        kernel_faults=tuple(met_kernel_faults(vcpus, kept, None if profile is None else profile.kernel, judge.host)),
        strict=strict,
        helped=any(verdict.action is Action.REFUSE for verdict in verdicts) and would_go(judge, vcpus, verdicts),
        assumed=assumed,
    )


def _direct(judge: Judge, vcpus: Sequence[Registers]) -> tuple[bool | None, bool]:
    """Return what `Answer.direct` and `Answer.assumed` say."""
    assert judge.host is not None
    refused = frozenset[int]().union(*(judge.refused(registers) for registers in vcpus))
    if not refused:
        return (None if judge.host.others is None else True), False
    if judge.trial is None and all(is_assumed(judge.host, register) for register in refused):
        return None, True
    return False, False


def _erratum(erratum: "Erratum", errata: Errata) -> dict[str, Any]:
    return {
        "name": str(erratum),
        "summary": erratum.summary,
        "scope": erratum.scope.value,
        "workaround": erratum.workaround,
        "unguarded": erratum in errata.unguarded,
    }
