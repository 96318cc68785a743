"""`vmstate-proxy host`."""

import os

import click

from formats.errors import FormatError
from proxy.captures.complete_file import complete_file
from proxy.captures.stream_files import open_stream
from proxy.cli.lazy import LazyGroup
from proxy.cli.options import vcpu_features_option
from proxy.errors import exit_code_of
from proxy.hosts.kvm import Feature
from proxy.hosts.profile import HostProfile, learn_profile, write_profile


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


@command.command("learn", short_help="Make a host's profile from a stream recorded on it.")
@click.argument("source", metavar="STREAM")
@click.option("-o", "--output", metavar="HOST", required=True, help="Where to write the profile; - is standard output.")
@click.option("--description", help="A line for people; by default the stream's name.")
def learn(*, source: str, output: str, description: str | None) -> None:
    """Make a host's profile from a STREAM that was recorded on that host.

    Any guest will do that has the vCPU features of those that are to come (SVE, PAuth, PMU); it need not even run.
    Start it on the destination, paused, and capture it.

    \b
    Examples:
      qemu-system-aarch64 -M virt -accel kvm -cpu host -m 64 -nodefaults -display none -S -monitor stdio
      (qemu) migrate "exec:cat > rack7.stream"
      vmstate-proxy host learn rack7.stream -o rack7.toml
    """
    from proxy.captures.offline import read_vcpus

    with open_stream(source) as stream:
        try:
            vcpus = read_vcpus(stream)
        except FormatError as error:
            click.echo(f"vmstate-proxy: {source}: {error}", err=True)
            raise click.exceptions.Exit(exit_code_of(error)) from None
    profile = learn_profile(vcpus, description or f"learned from {os.path.basename(source)}")
    _write(profile, output)


@command.command("probe", short_help="Make this host's profile by asking its KVM (arm64).")
@click.option("-o", "--output", metavar="HOST", required=True, help="Where to write the profile; - is standard output.")
@vcpu_features_option
def probe(*, output: str, vcpu_features: frozenset[Feature] | None) -> None:
    """Make this host's profile by asking its KVM; arm64 only.

    A scratch VM with one vCPU is created, its registers are read, and it is thrown away; no guest is touched.

    \b
    Examples:
      sudo vmstate-proxy host probe -o rack7.toml
      # For guests without a PMU (-cpu host,pmu=off) on a host with pointer authentication:
      vmstate-proxy host probe -o rack7.toml --vcpu-features PSCI_0_2,PTRAUTH_ADDRESS,PTRAUTH_GENERIC
    """
    from proxy.hosts.probe import probe_host

    _write(probe_host(vcpu_features), output)


def _write(profile: HostProfile, output: str) -> None:
    with complete_file(output) as file:
        file.write(write_profile(profile).encode())
    click.echo(
        f"vmstate-proxy: {output}: {len(profile.values)} values, {len(profile.others or ())} registers more", err=True
    )
