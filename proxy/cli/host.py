"""`vmstate-proxy host`."""

import os
import re
from dataclasses import replace

import click

from formats.errors import FormatError
from formats.stream.trailing import Trailing
from proxy.captures.complete_file import complete_file
from proxy.cli.lazy import LazyGroup
from proxy.cli.options.files import check_is_free, force_option
from proxy.cli.options.judging import vcpu_features_option
from proxy.cli.options.strict import say_trailing
from proxy.errors import ConfigError, RefusedError, exit_code_of
from proxy.hosts.kvm import Feature
from proxy.hosts.learning import join_profiles, learn_profile, with_kernel
from proxy.hosts.profile import HostProfile
from proxy.hosts.profile_text import write_profile

_VERSION = re.compile(r"[0-9]+\.[0-9]+(\.[0-9]+)?")

qemu_option = click.option(
    "--qemu",
    metavar="VERSION",
    callback=lambda _context, _option, text: _qemu_version(text),
    help="The version of the QEMU that takes the guests there; by default what its own --version says.",
)
"""Gives a command `qemu`, such as `11.1.3`, or None."""


def _qemu_version(text: str | None) -> str | None:
    if text is not None and not _VERSION.fullmatch(text):
        raise ConfigError(f"--qemu {text!r}: write a version as 10.0 or 11.1.3")
    return text


@click.group(
    "host",
    short_help="Make profiles of hosts, and compare them.",
    cls=LazyGroup,
    commands_in={"matrix": "proxy.cli.host_matrix"},
)
def command() -> None:
    """Make profiles of hosts, the registers that a host has and the values that its KVM insists on; compare them.

    \b
    Example:
      vmstate-proxy host learn destination.stream -o destination.toml
      vmstate-proxy host probe -o this-host.toml
      vmstate-proxy host matrix rack*.toml
    """


@command.command("learn", short_help="Make a host's profile from streams recorded on it.")
@click.argument("sources", metavar="STREAM...", nargs=-1, required=True)
@click.option("-o", "--output", metavar="HOST", required=True, help="Where to write the profile; - is standard output.")
@click.option("--description", help="A line for people; by default the streams' names.")
@click.option(
    "--kernel",
    metavar="VERSION",
    help="The host's kernel, as 'Linux 6.12': its rules tell which values it takes beside its own.",
)
@click.option(
    "--tcg",
    is_flag=True,
    help="Take streams of emulated guests (TCG), too: their registers are the emulated processor's, no host's.",
)
@qemu_option
@force_option
def learn(
    *,
    sources: tuple[str, ...],
    output: str,
    description: str | None,
    kernel: str | None,
    qemu: str | None,
    force: bool,
    tcg: bool,
) -> None:
    """Make a host's profile from STREAMs that were recorded on that host.

    A profile knows vCPUs of the kinds that it learned (with PMU, SVE, pointer authentication or without), and guests of
    others are refused: give a STREAM of each kind of guest that is to come. The guests need not run. Start one on the
    destination, paused, and capture it.

    \b
    Examples:
      qemu-system-aarch64 -M virt -accel kvm -cpu host -m 64 -nodefaults -display none -S -monitor stdio
      (qemu) migrate "exec:cat > rack7.stream"
      vmstate-proxy host learn rack7.stream -o rack7.toml --kernel "Linux 6.12" --qemu 10.0
      # Guests without a PMU come, too; theirs was started with -cpu host,pmu=off.
      vmstate-proxy host learn rack7.stream rack7-pmu-off.stream -o rack7.toml
    """
    check_is_free(output, force=force)
    profiles = [_learned(source) for source in sources]
    profile = replace(join_profiles(profiles), qemu=qemu)
    if profile.midr is None and not tcg:
        raise RefusedError(
            f"{sources[0]}: it holds no MIDR_EL1, so its guest was emulated (TCG), and its registers are no host's; "
            "record it with KVM on the destination, or give --tcg for a destination that emulates, too"
        )
    names = ", ".join(os.path.basename(source) for source in sources)
    profile = replace(profile, description=description or f"learned from {names}")
    _write(profile if kernel is None else with_kernel(profile, kernel), output)


def _learned(source: str) -> HostProfile:
    from proxy.captures.offline import read_vcpus
    from proxy.captures.stream_files import open_stream

    trailing = Trailing()
    with open_stream(source) as stream:
        try:
            vcpus = read_vcpus(stream, trailing=trailing)
            say_trailing(source, trailing)
            return learn_profile(vcpus, source)
        except FormatError as error:
            click.echo(f"vmstate-proxy: {source}: {error}", err=True)
            raise click.exceptions.Exit(exit_code_of(error)) from None


@command.command("probe", short_help="Make this host's profile by asking its KVM (arm64).")
@click.option("-o", "--output", metavar="HOST", help="Where to write the profile; - is standard output.")
@click.option("--script", is_flag=True, help="Print a script that does it on a host where only Python 3.6 or newer is.")
@qemu_option
@vcpu_features_option
def probe(*, output: str | None, script: bool, qemu: str | None, vcpu_features: frozenset[Feature] | None) -> None:
    """Make this host's profile by asking its KVM; arm64 only.

    Scratch VMs with one vCPU are created and thrown away, one for each kind of vCPU that the host has: with and without
    PMU, SVE and pointer authentication. Their registers are read, and KVM is asked, field by field, which values it
    takes beside its own. No guest is touched.

    \b
    Examples:
      sudo vmstate-proxy host probe -o rack7.toml
      # A host whose QEMU is elsewhere, or another one than the first in PATH:
      sudo vmstate-proxy host probe -o rack7.toml --qemu 11.1.3
      # A host without this program; the script needs nothing but Python's standard library.
      vmstate-proxy host probe --script > probe.py
      ssh root@rack3 python3 - < probe.py > rack3.toml
    """
    if script:
        if output is not None or qemu is not None or vcpu_features is not None:
            raise click.UsageError(
                "--script only prints the script; give --qemu to it where it runs: python3 probe.py -h"
            )
        from proxy.hosts.script.assembly import probe_script

        click.echo(probe_script(), nl=False)
        return
    if output is None:
        raise click.UsageError("Missing option '-o'; it says where to write the profile.")
    from proxy.hosts.probe import probe_host
    from proxy.hosts.qemu import installed_qemu

    _write(replace(probe_host(vcpu_features), qemu=qemu or installed_qemu()), output)


def _write(profile: HostProfile, output: str) -> None:
    with complete_file(output) as file:
        file.write(write_profile(profile).encode())
    kinds = f", {len(profile.kinds)} kinds of vCPU" if profile.all_kinds else ""
    click.echo(
        f"vmstate-proxy: {output}: {len(profile.values)} values, {len(profile.others or ())} registers more{kinds}",
        err=True,
    )
