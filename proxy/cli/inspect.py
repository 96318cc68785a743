"""`vmstate-proxy inspect`."""

import json
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import click

from formats.arm.register_list import RegisterList
from formats.arm.sysreg import describe, format_id
from formats.arm.vcpu_features import FeatureEvidence
from formats.errors import FormatError
from formats.frame.records import CommandType
from formats.stream.events import (
    AnyEvent,
    Command,
    Configuration,
    IterableData,
    LateVmdesc,
    MappedPages,
    SectionBegin,
    SectionFooter,
    TrailingBytes,
)
from formats.stream.trailing import Trailing
from formats.vmstate.device_state import DeviceState
from formats.vmstate.fields import DecodedField, Value, decode_section
from formats.vmstate.vcpus import evidence_of, open_vcpus
from proxy.captures.offline import read_events
from proxy.captures.stream_files import image_and_snapshot, open_stream
from proxy.cli.lines import echo, first_of
from proxy.cli.options.device_state import device_state_limit_option
from proxy.cli.options.given_once import OnceEach
from proxy.cli.options.strict import say_trailing, strict_option
from proxy.errors import ConfigError, exit_code_of
from proxy.report.words import counted

_TYPES = {1: "start", 2: "part", 3: "end", 4: "full"}
_SHOWN = 16
"""Bytes or elements of a long field that are shown; JSON has them all."""


@click.command("inspect", cls=OnceEach, short_help="Show the sections and registers of a captured stream.")
@click.argument("source", metavar="IN")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--registers", "all_registers", is_flag=True, help="List every register, not only the invariant ones.")
@click.option(
    "--section",
    "wanted",
    metavar="NAME",
    help="Decode the device sections of that name, field by field, by the stream's vmdesc; * and ? match.",
)
@strict_option
@device_state_limit_option
def command(
    *, source: str, as_json: bool, all_registers: bool, wanted: str | None, strict: bool, device_state_limit: int
) -> None:
    """Show what a captured stream holds: its sections with offsets and lengths, its vCPUs and their registers.

    IN may be packed with xz, gzip, bzip2 or zstd, or be a libvirt save file or a mapped-ram file, whose pages are not
    read; - is standard input, and file:PATH,offset=N a stream within a file. A section's length counts its header and
    its footer. A broken stream is shown as far as it could be read.

    qcow2:IMAGE,snapshot=NAME is the VM state of an internal snapshot ('savevm', 'virsh snapshot-create', 'multipass
    suspend'), here and wherever a captured stream may stand; qcow2:IMAGE lists the snapshots.

    \b
    Examples:
      vmstate-proxy inspect guest.stream
      vmstate-proxy inspect guest.stream --registers | grep ID_AA64
      vmstate-proxy inspect guest.stream --section timer
      vmstate-proxy inspect qcow2:guest.qcow2
      vmstate-proxy inspect guest.stream --json | jq '.sections[] | select(.name == "cpu")'
    """
    if (image := image_and_snapshot(source)) is not None and image[1] is None:
        from proxy.cli.snapshots import show_snapshots

        show_snapshots(image[0], as_json=as_json)
        return
    contents = _Contents(wanted=wanted, trailing=Trailing())
    problem = contents.read(source, device_state_limit, strict=strict)
    if as_json:
        document = contents.as_dict()
        if problem is not None:
            document["error"] = str(problem)
        click.echo(json.dumps(document, indent=1))
    elif wanted is not None:
        _show_decoded(contents.decoded)
    elif problem is None or contents.machine or contents.sections:
        _show(contents, all_registers)
    if not as_json:
        say_trailing(source, contents.trailing)
    if problem is None and wanted is not None and not contents.decoded:
        raise ConfigError(f"--section: {contents.not_decoded(source, wanted)}")
    if problem is not None:
        click.echo(f"vmstate-proxy: {source}: {problem}", err=True)
        raise click.exceptions.Exit(exit_code_of(problem))


@dataclass(slots=True)
class _Section:
    offset: int
    length: int
    type: str
    id: int
    name: str
    instance: int
    version: int


@dataclass(slots=True)
class _Contents:
    """What was seen of the stream.

    Attributes:
        trailing: What follows the stream.
        wanted: The name, or pattern, of the device sections that are to be decoded.
    """

    trailing: Trailing
    wanted: str | None = None
    machine: str | None = None
    capabilities: tuple[str, ...] = ()
    return_path: bool = False
    vmdesc: bool = False
    length: int = 0
    sections: list[_Section] = field(default_factory=list)
    vcpus: list[RegisterList] = field(default_factory=list)
    features: list[list[FeatureEvidence]] = field(default_factory=list)
    decoded: list[tuple[_Section, list[DecodedField]]] = field(default_factory=list)

    def read(self, source: str, device_state_limit: int, *, strict: bool) -> FormatError | None:
        """Look at a stream; return why it could not be read on, if anything is wrong with it."""
        trailing = None if strict else self.trailing
        with open_stream(source) as stream:
            try:
                for event in read_events(stream, device_state_limit=device_state_limit, trailing=trailing):
                    self.add(event)
            except FormatError as error:
                return error
        return None

    def add(self, event: AnyEvent) -> None:
        self.length += len(event.raw)
        match event:
            case TrailingBytes():
                self.length -= len(event.raw)
            case Configuration():
                self.machine, self.capabilities = event.machine, event.capabilities
            case Command():
                self.return_path |= event.command is CommandType.OPEN_RETURN_PATH
            case SectionBegin():
                self.sections.append(
                    _Section(
                        event.offset,
                        len(event.raw),
                        _TYPES[event.type],
                        event.section_id,
                        event.name,
                        event.instance_id,
                        event.version_id,
                    )
                )
            case IterableData() | SectionFooter():
                self.sections[-1].length += len(event.raw)
            case MappedPages():
                self.length += event.length
                self.sections[-1].length += event.length
            case DeviceState():
                self._add_devices(event)
            case LateVmdesc():
                self.vmdesc = True
            case _:
                pass

    def _add_devices(self, state: DeviceState) -> None:
        self.vmdesc = state.vmdesc is not None
        for section in state.sections:
            found = _Section(
                state.offset + section.start,
                section.end - section.start,
                _TYPES[4],
                section.section_id,
                section.name,
                section.instance_id,
                section.version_id,
            )
            self.sections.append(found)
            if self.wanted is not None and fnmatchcase(section.name, self.wanted):
                self.decoded.append((found, list(decode_section(state.held, section))))
        vcpus = open_vcpus(state)
        self.vcpus += vcpus
        self.features += [evidence_of(state, registers) for registers in vcpus]

    def not_decoded(self, source: str, wanted: str) -> str:
        """Say why there is nothing to decode: such a section is iterable, or there is none."""
        iterable = sorted({one.name for one in self.sections if one.type != _TYPES[4]})
        iterable = [name for name in iterable if fnmatchcase(name, wanted)]
        if iterable:
            return (
                f"{', '.join(iterable)} of {source}: an iterable section, whose records are stepped over and not "
                "decoded; device sections are"
            )
        names = sorted({section.name for section in self.sections if section.type == _TYPES[4]})
        return f"{source} has no device section {wanted!r}; it has {first_of(names, 'inspect')}"

    def as_dict(self) -> dict[str, Any]:
        if self.wanted is not None:
            return {
                "schema_version": 1,
                "decoded": [
                    asdict(section) | {"fields": [_field_as_dict(one) for one in fields]}
                    for section, fields in self.decoded
                ],
            }
        return {
            "schema_version": 1,
            "machine": self.machine,
            "length": self.length,
            "trailing": self.trailing.as_dict() if self.trailing.length else None,
            "capabilities": list(self.capabilities),
            "return_path": self.return_path,
            "vmdesc": self.vmdesc,
            "sections": [asdict(section) for section in self.sections],
            "vcpus": [
                {
                    "index": registers.vcpu,
                    "features": [asdict(one) for one in features],
                    "registers": [
                        {"id": format_id(register), "name": describe(register).name, "value": f"{value:#x}"}
                        for register, value in registers.items()
                    ],
                }
                for registers, features in zip(self.vcpus, self.features, strict=True)
            ],
        }


def _show(contents: _Contents, all_registers: bool) -> None:
    yes_no = {True: "yes", False: "no"}
    echo(
        f"machine {contents.machine or 'not said'}, return path {yes_no[contents.return_path]}, "
        f"vmdesc {yes_no[contents.vmdesc]}, {contents.length} bytes, {counted(len(contents.sections), 'section')}, "
        f"{counted(len(contents.vcpus), 'arm64 vCPU')}"
    )
    if contents.sections:
        click.echo(f"\n{'offset':>12} {'length':>12} {'type':5} {'id':>4} {'instance':>8} {'version':>7}  name")
    for section in contents.sections:
        click.echo(
            f"{section.offset:#12x} {section.length:12} {section.type:5} {section.id:4} {section.instance:8} "
            f"{section.version:7}  {section.name}"
        )
    for registers, features in zip(contents.vcpus, contents.features, strict=True):
        shown = [
            (describe(register), value)
            for register, value in registers.items()
            if all_registers or describe(register).invariant
        ]
        click.echo("")
        for one in features:
            word = {True: "has", False: "lacks", None: "may have"}[one.present]
            echo(f"vCPU {registers.vcpu} {word} {one.feature}: {one.evidence}", indent=4)
        which = "all its" if all_registers else "its invariant"
        click.echo(f"vCPU {registers.vcpu}: {which} registers, {len(shown)} of {len(registers)}")
        for register, value in shown:
            click.echo(f"  {format_id(register.id)}  {register.name:28} {value:#x}")


def _show_decoded(decoded: list[tuple[_Section, list[DecodedField]]]) -> None:
    for section, fields in decoded:
        click.echo(
            f"{section.name} instance {section.instance} version {section.version}, "
            f"{section.length} bytes at {section.offset:#x}"
        )
        above: tuple[str, ...] = ()
        for one in fields:
            *outer, last = one.path
            for depth, name in enumerate(outer):
                if one.path[: depth + 1] != above[: depth + 1]:
                    click.echo(f"{'':21}  {'  ' * depth}{name}")
            above = one.path
            name = "  " * len(outer) + last
            echo(f"{section.offset + one.offset:#12x} {one.length:8}  {name:32} {_shown(one.value)}", indent=56)
        click.echo("")


def _shown(value: Value) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int():
            return f"{value:#x}" if value >= 0 else str(value)
        case bytes():
            return f"{value[:_SHOWN].hex(' ')}{' ...' if len(value) > _SHOWN else ''}"
        case _:
            if len(value) > 1 and not any(value):
                return f"{len(value)} times 0"
            return " ".join(_shown(item) for item in value[:_SHOWN]) + (" ..." if len(value) > _SHOWN else "")


def _field_as_dict(one: DecodedField) -> dict[str, Any]:
    return {
        "path": list(one.path),
        "type": one.type,
        "offset": one.offset,
        "length": one.length,
        "value": one.value.hex() if isinstance(one.value, bytes) else one.value,
    }
