"""`vmstate-proxy diff`."""

import json
from typing import TYPE_CHECKING, Any

import click

from formats.arm.sysreg import Kind, describe
from formats.errors import FormatError
from formats.vmstate.device_state import DeviceState
from formats.vmstate.fields import decode_section
from formats.vmstate.vcpus import open_vcpus
from proxy.captures.difference import (
    RegisterDifference,
    SectionDifference,
    register_differences,
    section_differences,
)
from proxy.captures.offline import read_events
from proxy.captures.stream_files import open_stream
from proxy.captures.stream_or_profile import read_profile
from proxy.cli.lines import echo
from proxy.cli.options.device_state import device_state_limit_option
from proxy.cli.options.given_once import OnceEach
from proxy.cli.options.strict import say_trailing, strict_option, trailing_unless
from proxy.errors import ExitCode, exit_code_of
from proxy.hosts.host_registers import HostRegisters

if TYPE_CHECKING:
    from formats.vmstate.fields import DecodedField

_OF_THE_GUEST = (Kind.STATE, Kind.TIMER, Kind.COUNTER)


@click.command("diff", cls=OnceEach, short_help="Show how two streams or host profiles differ.")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--all", "everything", is_flag=True, help="Show the guest's own registers and sections, too.")
@click.option("--exit-code", is_flag=True, help="End with 1 if there are differences.")
@strict_option
@device_state_limit_option
def command(
    *, first: str, second: str, as_json: bool, everything: bool, exit_code: bool, strict: bool, device_state_limit: int
) -> None:
    """Show how two captured streams, or two host profiles, or one of each, differ.

    Registers are compared by vCPU, ID registers field by field; without --all, only those that belong to the host, and
    those that only one of the two has. With --all, two streams' device sections are compared field by field, too.

    \b
    Examples:
      vmstate-proxy diff rack3.toml rack7.toml
      vmstate-proxy diff guest.stream moved.stream --all
    """
    one, other = (_Side.read(name, device_state_limit, strict=strict) for name in (first, second))
    registers = [
        difference
        for difference in register_differences(one.vcpus, other.vcpus)
        if everything or difference.there != (True, True) or describe(difference.register).kind not in _OF_THE_GUEST
    ]
    sections = []
    if everything and one.sections is not None and other.sections is not None:
        sections = list(section_differences(one.sections, other.sections))
    if as_json:
        document: dict[str, Any] = {
            "schema_version": 1,
            "first": first,
            "second": second,
            "vcpus": [len(one.vcpus), len(other.vcpus)],
            "registers": [difference.as_dict() for difference in registers],
            "sections": [difference.as_dict() for difference in sections],
        }
        click.echo(json.dumps(document, indent=1))
    else:
        _show(one, other, registers, sections)
    different = bool(registers or sections or one.vcpus.keys() != other.vcpus.keys())
    raise click.exceptions.Exit(ExitCode.FAILED if exit_code and different else ExitCode.OK)


class _Side:
    """One of the two that are compared; a profile has no sections."""

    def __init__(
        self,
        vcpus: dict[int, dict[int, int | None]],
        sections: "dict[tuple[str, int], list[DecodedField]] | None",
    ) -> None:
        self.vcpus = vcpus
        self.sections = sections

    @classmethod
    def read(cls, name: str, device_state_limit: int, *, strict: bool) -> "_Side":
        profile = read_profile(name)
        if profile is not None:
            return cls({0: dict(HostRegisters(profile).items())}, None)
        vcpus: dict[int, dict[int, int | None]] = {}
        sections = {}
        trailing = trailing_unless(strict)
        with open_stream(name) as stream:
            try:
                for event in read_events(stream, device_state_limit=device_state_limit, trailing=trailing):
                    if isinstance(event, DeviceState):
                        vcpus |= {registers.vcpu: dict(registers.items()) for registers in open_vcpus(event)}
                        for section in event.sections:
                            sections[section.name, section.instance_id] = list(decode_section(event.held, section))
            except FormatError as error:
                click.echo(f"vmstate-proxy: {name}: {error}", err=True)
                raise click.exceptions.Exit(exit_code_of(error)) from None
        say_trailing(name, trailing)
        return cls(vcpus, sections)


def _show(one: _Side, other: _Side, registers: list[RegisterDifference], sections: list[SectionDifference]) -> None:
    if one.vcpus.keys() != other.vcpus.keys():
        click.echo(f"vCPUs: {len(one.vcpus)} in A, {len(other.vcpus)} in B")
    several = len(one.vcpus) > 1
    for difference in registers:
        vcpu = f"vCPU {difference.vcpu} " if several else ""
        name = f"{vcpu}{describe(difference.register).name}"
        if difference.there != (True, True):
            which, value = ("A", difference.first) if difference.there[0] else ("B", difference.second)
            click.echo(f"{name}  only in {which}" + ("" if value is None else f": {value:#x}"))
            continue
        fields = f"  ({'; '.join(difference.fields)})" if difference.fields else ""
        echo(f"{name}  {difference.first:#x}, {difference.second:#x}{fields}", indent=4)
    for section in sections:
        label = f"section {section.name!r} instance {section.instance}"
        if section.there != (True, True):
            click.echo(f"{label}  only in {'A' if section.there[0] else 'B'}")
        else:
            echo(f"{label}: {', '.join(section.fields)}", indent=4)
    if not registers and not sections and one.vcpus.keys() == other.vcpus.keys():
        click.echo("No differences.")
