"""Asking the destination's own kernel: registers are tried on scratch vCPUs, as its QEMU would write them."""

import errno
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import filterfalse
from typing import TYPE_CHECKING, Final, TypeAlias

from formats.arm.sysreg import Kind, describe
from proxy.hosts.kvm import Feature, ScratchVcpu, scratch_vcpu
from proxy.hosts.qemu_tolerance import tolerated
from proxy.hosts.qmp import ask_qmp
from proxy.hosts.started_qemu import look_at
from proxy.judging.profile_acceptance import NO_SUCH_REGISTER
from proxy.judging.trial import Trial

if TYPE_CHECKING:
    from proxy.hosts.profile import HostProfile


_Pair: TypeAlias = tuple[int, int | None]
"""A register's id and its value; None for one that is left out."""

_PLAIN: Final = frozenset({Kind.STATE, Kind.TIMER, Kind.COUNTER})
"""What KVM keeps for the guest, and takes or refuses no other register for."""


@dataclass(slots=True)
class _Answers:
    """What KVM said to registers and values.

    Attributes:
        taken: Those that it takes.
        refused: The others, with the errno.
    """

    taken: set[_Pair] = field(default_factory=set)
    refused: dict[_Pair, int] = field(default_factory=dict)


class _Scratch:
    """A scratch vCPU of one kind.

    It is asked about its own values when it is made: most of a guest's are the same, and the guest stands when it is
    judged. KVM may refuse one register for the sake of another, so that these answers hold for guests of which it takes
    nothing else than that in any register that may decide over others; those guests are asked about anew, once.
    """

    def __init__(self, vcpu: ScratchVcpu) -> None:
        self._listed = frozenset(vcpu.registers())
        self._vcpu = vcpu
        self._deciding = frozenset(register for register in self._listed if _may_decide(register))
        self._answers = {_NOTHING: _Answers()}
        self._own: dict[int, int] = {}
        self._held: dict[int, int] = {}
        for register in sorted(self._listed):
            with suppress(OSError):
                self._own[register] = vcpu.get(register)
                self._code(register, self._own[register], self._answers[_NOTHING])
        self._takes = frozenset(self._answers[_NOTHING].taken)
        self._held.clear()

    def tried(self, registers: Iterable[_Pair], changes: Iterable[_Pair]) -> Iterator[tuple[int, int | None]]:
        """Try a guest's registers in their order; yield those that KVM does not take: ids, and errno.

        A register that KVM does not list comes with None. One whose value is not known is not tried.

        Args:
            registers: The guest's.
            changes: What was changed in them, and what was left out.
        """
        registers = list(registers)
        others = list(filterfalse(self._takes.__contains__, registers))
        beside = frozenset(
            [(register, None) for register, value in changes if value is None and register in self._listed]
            + [pair for pair in others if pair[0] in self._deciding and self._takes_alone(*pair)]
        )
        fresh = beside not in self._answers
        # All of a fresh list is written, in its order, to a vCPU as it was at first.
        self._hold(_NOTHING if fresh else beside)
        answers = self._answers.setdefault(beside, _Answers())
        for register, value in others if beside == _NOTHING else filterfalse(answers.taken.__contains__, registers):
            if register not in self._listed:
                yield register, None
            elif value is not None and (code := self._code(register, value, answers)):
                yield register, code

    def _code(self, register: int, value: int, answers: _Answers) -> int:
        """Try a value, unless that was done; return 0 when KVM takes it, otherwise its errno."""
        pair = register, value
        if pair in answers.taken:
            return 0
        if pair not in answers.refused:
            code = self._write(register, value)
            if not code:
                answers.taken.add(pair)
                return 0
            answers.refused[pair] = code
        return answers.refused[pair]

    def _takes_alone(self, register: int, value: int | None) -> bool:
        """Tell whether KVM takes a value beside its own ones of all other registers that may decide."""
        alone = self._answers[_NOTHING]
        pair = register, value
        if value is not None and pair not in alone.taken and pair not in alone.refused:
            self._hold(_NOTHING)
            self._code(register, value, alone)
        return pair in alone.taken

    def _hold(self, beside: frozenset[_Pair]) -> None:
        """Have the vCPU hold these values, and its own in all else that may decide."""
        wanted = {register: self._own.get(register) for register in self._held} | dict(beside)
        for register, value in wanted.items():
            if value is not None and self._held.get(register, self._own.get(register)) != value:
                self._write(register, value)

    def _write(self, register: int, value: int) -> int:
        code = self._vcpu.set(register, value)
        if not code and register in self._deciding:
            self._held[register] = value
        return code


_NOTHING: Final = frozenset[_Pair]()


def _may_decide(register: int) -> bool:
    described = describe(register)
    return not described.known or described.kind not in _PLAIN


class KernelTrial(Trial):
    """Tells which registers this host's KVM does not take. No guest is touched.

    A migration has one of its own. There is one scratch VM for each kind of vCPU, made by `open`, or when it is first
    needed, and asked about its own values then; what several vCPUs have in common is tried once.
    """

    def __init__(self, qmp: str | None = None) -> None:
        """Make one; `qmp` is where the destination's QEMU can be asked, see `proxy.hosts.qmp`."""
        self._qmp = qmp
        self._opened = ExitStack()
        self._scratch: dict[frozenset[Feature], _Scratch] = {}

    def fresh(self) -> "KernelTrial":
        """Return one for another migration."""
        return KernelTrial(self._qmp)

    def open(self, host: "HostProfile", address: tuple[str, int] | None = None) -> None:
        """Make a scratch VM for each kind of vCPU that the host has, and look at who listens at an address.

        Raises:
            KvmError: There is no arm64 KVM here, or it does not have a feature.
            QmpError: The destination's QEMU cannot be asked.
        """
        if self._qmp is not None:
            self.started = ask_qmp(self._qmp)
        else:
            self.started = None if address is None else look_at(*address)
        for names in (host.vcpu_features, *(variant.vcpu_features for variant in host.variants or ())):
            self._of(names or ())

    def refused(
        self,
        registers: Iterable[tuple[int, int | None]],
        host: "HostProfile",
        repaired: frozenset[tuple[int, int | None]],
    ) -> dict[int, str]:
        """Tell which registers are refused, and why, by register id.

        QEMU refuses a list that holds a register which KVM does not list (`cpu_post_load`), unless it knows it to be
        harmless, and otherwise writes it in its order, to the end (`write_list_to_kvmstate`).

        Args:
            registers: Ids and values of one vCPU; None for a value that is not known, which is not tried.
            host: This host, as vCPUs of the guest's kind find it.
            repaired: What was changed in the guest's registers, each with its new value.

        Raises:
            KvmError: There is no arm64 KVM here, or it does not have a feature.
        """
        scratch, passed_over = self._of(host.vcpu_features or ()), tolerated(host.qemu)
        refused = {}
        for register, code in scratch.tried(registers, repaired):
            if code is not None:
                refused[register] = f"this host's KVM answers {errno.errorcode.get(code, code)}"
            elif register not in passed_over:
                refused[register] = NO_SUCH_REGISTER
        return refused

    def close(self) -> None:
        """Throw the scratch VMs away."""
        self._scratch.clear()
        self._opened.close()

    def _of(self, names: Iterable[str]) -> _Scratch:
        features = frozenset(Feature[name] for name in names)
        if features not in self._scratch:
            vcpu = self._opened.enter_context(scratch_vcpu(features))
            self._scratch[features] = _Scratch(vcpu)
        return self._scratch[features]
