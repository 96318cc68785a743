"""The vCPUs of a guest that may come: of a captured stream, or as the profile of the host it starts on has them."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from formats.limits import DEFAULT_DEVICE_STATE_LIMIT
from proxy.errors import ConfigError
from proxy.hosts.host_registers import HostRegisters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from formats.stream.trailing import Trailing
    from proxy.hosts.profile import HostProfile
    from proxy.judging.verdict import Registers

_PROFILE_MARK: Final = b"schema_version"
_HEAD: Final = 4096


def read_source(
    name: str, *, device_state_limit: int = DEFAULT_DEVICE_STATE_LIMIT, trailing: "Trailing | None" = None
) -> "Sequence[Registers]":
    """Return the vCPUs of a file that is a stream or a host profile; the latter has one.

    Args:
        name: The file; `-`, and what is no regular file, is a stream.
        device_state_limit: Bytes of device state held at most.
        trailing: Takes note of what follows a stream in its file. None: nothing may.

    Raises:
        ConfigError: It is a broken profile, or one that lists no registers.
        ProxyError: It cannot be opened, or read.
        FormatError: It is no stream, or a broken one.
    """
    profile = read_profile(name)
    if profile is not None:
        if profile.others is None:
            raise ConfigError(f"{name}: it does not list all registers (also_present); make it anew with 'host probe'")
        return [HostRegisters(profile)]
    from proxy.captures.offline import read_vcpus
    from proxy.captures.stream_files import open_stream

    with open_stream(name) as stream:
        return read_vcpus(stream, device_state_limit=device_state_limit, trailing=trailing)


def read_profile(name: str) -> "HostProfile | None":
    """Return the profile in a file; None when it is something else, such as a stream.

    Raises:
        ConfigError: It is a broken profile.
    """
    if not _is_profile(name):
        return None
    from proxy.hosts.profile_file import load_profile

    return load_profile(Path(name))


def _is_profile(name: str) -> bool:
    """Tell by the first bytes; what cannot be opened is none, and whoever opens it as a stream says why."""
    if not os.path.isfile(name):
        return False  # what a pipe gives, it gives once
    try:
        with open(name, "rb", buffering=0) as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    # TOML has no zero bytes; a stream's header has, and so has libvirt's before XML, which may hold any words.
    return _PROFILE_MARK in head and b"\0" not in head
