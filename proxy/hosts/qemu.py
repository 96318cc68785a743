"""Which QEMU this host has: some take what others refuse, see `proxy.hosts.qemu_tolerance`."""

import re
from typing import Final

_PROGRAMS: Final = ("qemu-system-aarch64", "qemu-kvm", "/usr/libexec/qemu-kvm")
"""What distributions call it; the last is where those of the Red Hat family put it, outside PATH."""
_VERSION: Final = re.compile(r"QEMU emulator version (\d+\.\d+(?:\.\d+)?)")
_NUMBERS: Final = re.compile(r"(\d+)\.(\d+)")
_PATIENCE: Final = 20.0


def version_of(qemu: str | None) -> tuple[int, int] | None:
    """Return major and minor number of a version such as `11.1.3`; None where it is not known, or is none."""
    found = _NUMBERS.match(qemu or "")
    return None if found is None else (int(found[1]), int(found[2]))


def installed_qemu() -> str | None:
    """Return the version of the QEMU that this host runs arm64 guests with; None when none is found, or says nothing.

    It asks the program, and so takes some 50 ms, and seconds on an emulated host.
    """
    import shutil  # a profile's verdicts need only `version_of`
    import subprocess

    for name in _PROGRAMS:
        path = shutil.which(name)
        if path is None:
            continue
        try:
            said = subprocess.run(
                [path, "--version"], capture_output=True, text=True, timeout=_PATIENCE, check=False
            ).stdout
        except (OSError, subprocess.TimeoutExpired):
            continue
        if match := _VERSION.search(said):
            return match[1]
    return None
