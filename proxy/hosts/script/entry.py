"""The probe's own command line, where it runs as a script: see `proxy.hosts.script.assembly`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from proxy.errors import ProxyError
from proxy.hosts.probe import probe_host
from proxy.hosts.profile_text import write_profile
from proxy.hosts.qemu import installed_qemu


def main(arguments: Sequence[str]) -> int:
    """Print this host's profile; return the exit status."""
    parser = argparse.ArgumentParser(prog="probe", description="Print the profile of this arm64 host.")
    parser.add_argument(
        "--qemu",
        metavar="VERSION",
        help="the version of the QEMU that takes guests here; by default what its own --version says",
    )
    options = parser.parse_args(arguments)
    try:
        profile = replace(probe_host(), qemu=options.qemu or installed_qemu())
    except ProxyError as error:
        sys.stderr.write(f"probe: {error}\n")
        return int(error.exit_code)
    sys.stdout.write(write_profile(profile))
    return 0
