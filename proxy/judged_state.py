"""One device state, judged: what its vCPUs' registers came to, and the bytes that go on."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from formats.arm.vcpu_features import kind_of
from formats.vmstate.interrupts import SECTION_OF, unread_interrupts
from formats.vmstate.removal import without_registers
from formats.vmstate.vcpus import open_vcpus
from proxy.judging.advice import would_go
from proxy.judging.start_flags import start_for
from proxy.judging.verdict import Action, Verdict

if TYPE_CHECKING:
    from formats.arm.register_list import RegisterList
    from formats.arm.vcpu_features import Kind
    from formats.frame.event import Raw
    from formats.vmstate.device_state import DeviceState
    from formats.vmstate.locators import DeviceSection
    from proxy.hosts.profile import HostProfile
    from proxy.judging.judge import Judge
    from proxy.judging.start_flags import Start


_MOST_NAMES: Final = 12
"""Names of registers in one line at most."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """A piece of the stream that does not go on as it came, though it may be equal.

    Attributes:
        offset: Where it begins in the stream.
        before: Its bytes as they came.
        after: What goes on in their place.
    """

    offset: int
    before: bytes = field(repr=False)
    after: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class JudgedState:
    """A device state, and the verdicts on each of its arm64 vCPUs.

    Attributes:
        state: The device state.
        vcpus: Each vCPU's registers with their verdicts. Not by index: no vCPU's verdicts may hide behind those of one
            that claims the same.
        host: The destination, as far as it is known.
        helped: Whether what the refusals advise would let the guest go.
    """

    state: "DeviceState"
    vcpus: "list[tuple[RegisterList, list[Verdict]]]"
    host: "HostProfile | None"
    helped: bool = False

    @property
    def kinds(self) -> "tuple[Kind, ...]":
        """The kinds of vCPU that the guest has."""
        return tuple(dict.fromkeys(kind_of(registers) for registers, _ in self.vcpus))

    @property
    def start(self) -> "Start | None":
        """How the destination has to be started for it; None where that is not known."""
        return None if self.host is None else start_for(self.host, self.kinds)

    @property
    def not_looked_at(self) -> tuple[str, ...]:
        """The sections of interrupt controllers that are known of the destination, and that nothing here describes."""
        if self.host is None or self.host.interrupts is None:
            return ()
        return tuple(section.label for section in unread_interrupts(self.state))

    @property
    def refusal(self) -> str | None:
        """Why the guest may not pass, in one line that names offset, section and registers; None when it may."""
        refusals = self._of(Action.REFUSE)
        if not refusals:
            return None
        where = self._section_of(refusals[0])
        text = in_one_line(refusals, helped=self.helped)
        return f"offset {self.state.offset + where.start:#x}, section {where.label}: {text}"

    @property
    def refused(self) -> tuple[str, ...]:
        """The names of the registers for which it may not."""
        return tuple(sorted({verdict.name for verdict in self._of(Action.REFUSE)}))

    @property
    def changes(self) -> list[Verdict]:
        """The registers that are swapped or left out."""
        return self._of(Action.SWAP, Action.DROP)

    def changed(self, left: dict[int, int]) -> "Raw":
        """Swap values in place and leave registers out; return the bytes that go on.

        Args:
            left: How many registers each vCPU has left, by its index, where any were left out; added to.
        """
        removed = []
        for registers, verdicts in self.vcpus:
            dropped = _swap(registers, verdicts)
            if dropped:
                removed.append((registers, dropped))
                left[registers.vcpu] = len(registers) - len(dropped)
        return without_registers(self.state, removed, left) if left else self.state.raw

    def _of(self, *actions: Action) -> list[Verdict]:
        return [verdict for _, verdicts in self.vcpus for verdict in verdicts if verdict.action in actions]

    def _section_of(self, verdict: Verdict) -> "DeviceSection":
        name = SECTION_OF.get(verdict.register)
        if name is not None:
            return next(section for section in self.state.sections if section.name == name)
        cpus = (section for section in self.state.sections if section.name == "cpu")
        return next(section for section in cpus if section.instance_id == verdict.vcpu)


def judge_state(judge: "Judge", state: "DeviceState") -> JudgedState:
    """Judge every vCPU in a device state, and change nothing.

    Raises:
        UnknownCpuVersionError: An arm64 `cpu` section of a version or layout that is not known.
        KvmError: The destination's kernel cannot be asked.
    """
    judged = [(registers, judge.judge(registers)) for registers in open_vcpus(state)]
    verdicts = [verdict for _, those in judged for verdict in those]
    helped = Action.REFUSE in [verdict.action for verdict in verdicts] and would_go(
        judge, [registers for registers, _ in judged], verdicts
    )
    return JudgedState(state, judged, judge.host, helped)


def in_one_line(refusals: list[Verdict], *, helped: bool) -> str:
    """Say what is refused: the first register in full, the others by name.

    Args:
        refusals: The refusals.
        helped: Whether what they advise would let the guest go; options that would not are kept to ourselves.
    """
    first = refusals[0]
    others = sorted({verdict.name for verdict in refusals if verdict.register != first.register})
    advice = first.advice if helped or not (first.option or first.losses) else ""
    reason = "; ".join(filter(None, (first.why, first.rule, advice)))
    if len(others) > _MOST_NAMES:
        others[_MOST_NAMES:] = [f"and {len(others) - _MOST_NAMES} more, which 'check' lists"]
    return f"{first.name}: {reason}" + (f"; refused, too: {', '.join(others)}" if others else "")


def _swap(registers: "RegisterList", verdicts: list[Verdict]) -> set[int]:
    """Swap in place; return the ids of the registers that are to be left out."""
    dropped = set()
    for verdict in verdicts:
        if verdict.action is Action.SWAP:
            assert verdict.new is not None
            registers[verdict.register] = verdict.new
        elif verdict.action is Action.DROP:
            dropped.add(verdict.register)
    return dropped
