"""Learning a host's profile from streams that were recorded on it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from formats.arm.sysreg import describe, parse_register
from formats.arm.vcpu_features import named
from formats.tables import read_table
from proxy.errors import ConfigError, RefusedError
from proxy.hosts.profile import HostProfile, host_values, variant_of

if TYPE_CHECKING:
    from formats.arm.register_list import RegisterList

_VERSION: Final = re.compile(r"(?:Linux )?(\d+\.\d+)(?:[.-].*)?")


def learn_profile(vcpus: "Iterable[RegisterList]", description: str) -> HostProfile:
    """Make a profile of the host that a stream was recorded on.

    Args:
        vcpus: The registers of each vCPU in the stream.
        description: Where the stream comes from, for people.

    Raises:
        RefusedError: There is no arm64 vCPU in it, or its vCPUs ran on unlike processors.
    """
    profile: HostProfile | None = None
    for registers in vcpus:
        own = host_values(registers.items())
        if profile is None:
            profile = HostProfile(description, own, frozenset(registers.ids) - own.keys())
        elif own != profile.values:
            register = next(
                id_ for id_ in own.keys() | profile.values.keys() if own.get(id_) != profile.values.get(id_)
            )
            raise RefusedError(
                f"vCPU {registers.vcpu}: {describe(register).name} differs from vCPU 0's, so the host has unlike "
                "processors; record the stream with QEMU pinned to cores of one kind"
            )
    if profile is None:
        raise RefusedError("the stream holds no arm64 vCPU, so there is no host to learn")
    return profile


def join_profiles(profiles: Sequence[HostProfile]) -> HostProfile:
    """Join what several streams of one host tell, each of vCPUs of its kind.

    The first kind with the most features is the profile's own; the others are its variants.

    Raises:
        RefusedError: Two streams tell of the same kind otherwise, and so of two hosts.
    """
    kinds: dict[frozenset[str], HostProfile] = {}
    for profile in profiles:
        known = kinds.setdefault(profile.kind, profile)
        ours, theirs = known.values, profile.values
        register = next((id_ for id_ in ours.keys() | theirs.keys() if ours.get(id_) != theirs.get(id_)), None)
        if register is not None:
            raise RefusedError(
                f"{known.description} and {profile.description}: {describe(register).name} differs for vCPUs with "
                f"{named(profile.kind)}, so they were recorded on unlike hosts; make a profile of each"
            )
    base, *others = sorted(kinds.values(), key=lambda profile: -len(profile.kind))
    return replace(base, variants=tuple(variant_of(base, other) for other in others))


def with_kernel(profile: HostProfile, kernel: str) -> HostProfile:
    """Add what the rules of a kernel say of the bits that may be written.

    Args:
        profile: A learned profile.
        kernel: `Linux 6.12`, or longer, as `uname -sr` has it.

    Raises:
        ConfigError: The rules of that kernel are not known.
    """
    table = read_table("proxy.hosts", "kernels.toml")
    match = _VERSION.fullmatch(kernel.strip())
    if match is None or match[1] not in table:
        known = ", ".join(table)
        raise ConfigError(
            f"--kernel {kernel!r}: the rules of Linux {known} are known; leave it out, or use 'host probe' there, "
            "which asks the kernel itself"
        )
    masks = {parse_register(name): mask for name, mask in table[match[1]].items()}
    name = kernel.strip() if kernel.strip().startswith("Linux") else f"Linux {kernel.strip()}"
    return replace(profile, kernel=name, writable={id_: mask for id_, mask in masks.items() if id_ in profile.values})
