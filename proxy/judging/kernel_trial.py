"""Asking the destination's own kernel: registers are tried on scratch vCPUs, as its QEMU would write them."""

import errno
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxy.hosts.kvm import Feature, ScratchVcpu, scratch_vcpu
from proxy.hosts.qemu_tolerance import tolerated
from proxy.hosts.qmp import ask_qmp
from proxy.hosts.started_qemu import look_at
from proxy.judging.profile_acceptance import NO_SUCH_REGISTER
from proxy.judging.trial import Trial

if TYPE_CHECKING:
    from proxy.hosts.profile import HostProfile


@dataclass(slots=True)
class _Scratch:
    """A scratch vCPU of one kind.

    Attributes:
        vcpu: It.
        listed: The ids of the registers that it has.
        answers: What KVM said to each register and value so far; by what had been changed in the guest before.
    """

    vcpu: ScratchVcpu
    listed: frozenset[int]
    answers: dict[frozenset[tuple[int, int | None]], dict[tuple[int, int], int]] = field(default_factory=dict)


class KernelTrial(Trial):
    """Tells which registers this host's KVM does not take. No guest is touched.

    A migration has one of its own. There is one scratch VM for each kind of vCPU, made by `open`, or when it is first
    needed; a register and a value that several vCPUs have in common are tried once.
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
            repaired: What was changed in the guest's registers, each with its new value. KVM may refuse one register
                for the sake of another, so that answers hold for guests with the same changes.

        Raises:
            KvmError: There is no arm64 KVM here, or it does not have a feature.
        """
        scratch = self._of(host.vcpu_features or ())
        answers = scratch.answers.setdefault(repaired, {})
        passed_over = tolerated(host.qemu)
        refused = {}
        for register, value in registers:
            if register not in scratch.listed:
                if register not in passed_over:
                    refused[register] = NO_SUCH_REGISTER
                continue
            if value is None:
                continue
            code = answers.get((register, value))
            if code is None:
                code = answers[register, value] = scratch.vcpu.set(register, value)
            if code:
                refused[register] = f"this host's KVM answers {errno.errorcode.get(code, code)}"
        return refused

    def close(self) -> None:
        """Throw the scratch VMs away."""
        self._scratch.clear()
        self._opened.close()

    def _of(self, names: Iterable[str]) -> _Scratch:
        features = frozenset(Feature[name] for name in names)
        if features not in self._scratch:
            vcpu = self._opened.enter_context(scratch_vcpu(features))
            self._scratch[features] = _Scratch(vcpu, frozenset(vcpu.registers()))
        return self._scratch[features]
