"""`vmstate-proxy check`."""

import json
from typing import TYPE_CHECKING, Any

import click

from formats.errors import FormatError
from formats.sysreg import describe
from proxy.cli.options import JudgeOptions, judge_options
from proxy.errors import ExitCode, exit_code_of
from proxy.judge import Action, Verdict
from proxy.report import counted, verdict_as_dict
from proxy.source import read_source

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from proxy.judge import Judge, Registers

_WORDS = {
    Action.ACCEPT: "accepted",
    Action.SWAP: "swapped",
    Action.DROP: "left out",
    Action.REFUSE: "refused",
}


@click.command("check")
@click.argument("source", metavar="SOURCE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@judge_options
def command(*, source: str, as_json: bool, options: JudgeOptions) -> None:
    """Tell whether the guest of SOURCE can go to the destination, and what would be changed. Nothing is moved.

    SOURCE is a captured stream, or a host's profile, which stands for a guest that was just started there. The answer
    is the one that 'run' would carry out with the same options. Exit code 0: the guest can go; 4: it cannot.

    \b
    Examples:
      vmstate-proxy check rack3.toml --host rack7.toml --allow-midr 0x411fd070
      # On the destination, asking its own kernel about a captured guest:
      sudo vmstate-proxy check guest.stream --kvm --allow-midr 0x411fd070 --json
    """
    judge = options.judge
    if judge.host is None:
        raise click.UsageError("say what the destination is: --host PROFILE, --midr ID, or --kvm for this host")
    try:
        vcpus = read_source(source, device_state_limit=options.device_state_limit)
    except FormatError as error:
        click.echo(f"vmstate-proxy: {source}: {error}", err=True)
        raise click.exceptions.Exit(exit_code_of(error)) from None
    verdicts = [verdict for registers in vcpus for verdict in judge.judge(registers)]
    direct = not any(judge.refused(registers.items()) for registers in vcpus)
    goes = all(verdict.action is not Action.REFUSE for verdict in verdicts)
    if as_json:
        click.echo(json.dumps(_document(source, judge, vcpus, verdicts, direct=direct, goes=goes), indent=1))
    else:
        _show(verdicts, len(vcpus))
        click.echo(_conclusion(verdicts, len(vcpus), direct=direct, goes=goes))
        if judge.host.others is None:
            known = counted(len(judge.host.values), "register")
            click.echo(f"Nothing but {known} was compared; a whole profile ('host probe', 'host learn') tells more.")
    raise click.exceptions.Exit(ExitCode.OK if goes else ExitCode.REFUSED)


def _document(
    source: str, judge: "Judge", vcpus: "Sequence[Registers]", verdicts: list[Verdict], *, direct: bool, goes: bool
) -> dict[str, Any]:
    assert judge.host is not None
    return {
        "schema_version": 1,
        "source": source,
        "destination": judge.host.description,
        "asked": "profile" if judge.trial is None else "kvm",
        "direct": direct,
        "goes": goes,
        "vcpus": len(vcpus),
        "verdicts": [verdict_as_dict(verdict) for verdict in verdicts],
    }


def _conclusion(verdicts: list[Verdict], vcpus: int, *, direct: bool, goes: bool) -> str:
    if not vcpus:
        return "The stream holds no arm64 vCPU: it passes as it is."
    counts = {action: len({one.register for one in verdicts if one.action is action}) for action in Action}
    if not goes:
        refused = counts[Action.REFUSE]
        return f"The guest cannot go: {counted(refused, 'register')} {'is' if refused == 1 else 'are'} refused."
    changes = " and ".join(
        f"{counted(counts[action], 'register')} {_WORDS[action]}"
        for action in (Action.SWAP, Action.DROP)
        if counts[action]
    )
    if not direct:
        return f"The guest can go through the proxy, with {changes}; directly it is refused."
    unneeded = f"; through the proxy it goes with {changes} all the same" if changes else ""
    return f"The destination takes the guest as it is; nothing has to be changed{unneeded}."


def _show(verdicts: list[Verdict], vcpus: int) -> None:
    """Print a table: equal verdicts of several vCPUs in one line, and under each what it rests on."""
    groups: dict[tuple[Action, int, int | None, int | None, str, str], list[int]] = {}
    for one in verdicts:
        groups.setdefault((one.action, one.register, one.old, one.new, one.rule, one.why), []).append(one.vcpu)
    for (action, register, old, new, rule, why), those in groups.items():
        which = "" if len(those) == vcpus else f" (vCPU {_ranges(those)})"
        value = f"{_hexadecimal(old)} -> {_hexadecimal(new)}" if action is Action.SWAP else _hexadecimal(old)
        click.echo(f"{_WORDS[action]:9} {describe(register).name}{which}  {value}")
        for line in (why, rule):
            if line:
                click.echo(f"{'':12}{line}")


def _hexadecimal(value: int | None) -> str:
    return "(none)" if value is None else f"{value:#x}"


def _ranges(numbers: "Iterable[int]") -> str:
    return ", ".join(str(number) for number in sorted(numbers))
