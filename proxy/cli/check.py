"""`vmstate-proxy check`."""

import json
from typing import TYPE_CHECKING

import click

from formats.arm.sysreg import describe
from formats.arm.vcpu_features import named
from formats.errors import FormatError
from proxy.captures.stream_or_profile import read_source
from proxy.cli.lines import COLUMNS, echo
from proxy.cli.options.given_once import OnceEach
from proxy.cli.options.judging import JudgeOptions, judge_options
from proxy.cli.options.strict import say_trailing, trailing_unless
from proxy.errors import ExitCode, exit_code_of
from proxy.judging.check import SCHEMA_VERSION, Answer, check
from proxy.judging.explain import what_the_guest_sees
from proxy.judging.verdict import Action, Verdict
from proxy.report.words import counted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from formats.arm.errata import Erratum
    from proxy.judging.judge import Judge

_WORDS = {
    Action.ACCEPT: "accepted",
    Action.SWAP: "swapped",
    Action.DROP: "left out",
    Action.REFUSE: "refused",
}


@click.command("check", cls=OnceEach, short_help="Tell whether a guest can go, and what would be swapped.")
@click.argument("source", metavar="SOURCE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--all", "show_same", is_flag=True, help="List the registers that are the same on both sides, too.")
@click.option("--summary", is_flag=True, help="Print the answer alone, in one line.")
@click.option(
    "--strict",
    is_flag=True,
    help="Let the guest not go where a host's kernel has a known fault that it meets, nor where a file holds more than "
    "the stream.",
)
@judge_options
def command(*, source: str, as_json: bool, show_same: bool, summary: bool, strict: bool, options: JudgeOptions) -> None:
    """Tell whether the guest of SOURCE can go to the destination, and what would be swapped or left out.

    Nothing is moved. SOURCE is a captured stream, or a host's profile, which stands for a guest that was just started
    there. The answer is the one that 'run' would carry out with the same options: what becomes of each register, what
    the guest will see of it, which features the destination lacks, and which errata its processor has. The answer
    stands first; --summary prints nothing else. Exit code 0: the guest can go; 4: it cannot; 5: there was nothing to
    judge, for the stream holds no arm64 vCPU.

    The guest is judged as the vCPU that it has. Of which kind that is, and how the destination's QEMU has to be started
    for it, is said where the destination was asked about every kind: by --kvm, or by 'host probe'.

    \b
    Examples:
      vmstate-proxy check rack3.toml --host rack7.toml --allow-midr 0x411fd070
      # On the destination, asking its own kernel about a captured guest:
      sudo vmstate-proxy check guest.stream --kvm --allow-midr 0x411fd070 --json
    """
    judge = options.judge
    if as_json and summary:
        raise click.UsageError("give either --json or --summary")
    if judge.host is None:
        raise click.UsageError("say what the destination is: --host PROFILE, --midr ID, or --kvm for this host")
    trailing = trailing_unless(strict)
    try:
        vcpus = read_source(source, device_state_limit=options.device_state_limit, trailing=trailing)
    except FormatError as error:
        click.echo(f"vmstate-proxy: {source}: {error}", err=True)
        raise click.exceptions.Exit(exit_code_of(error)) from None
    say_trailing(source, trailing)
    answer = check(judge, vcpus, strict=strict)
    if as_json:
        head = {
            "schema_version": SCHEMA_VERSION,
            "source": source,
            "destination": judge.host.description,
            "asked": "profile" if judge.trial is None else "kvm",
        }
        click.echo(json.dumps(head | answer.as_dict(), indent=1))
    elif summary:
        click.echo(_conclusion(answer))
    else:
        _show(answer, judge, show_same=show_same)
    if not answer.judged:
        raise click.exceptions.Exit(ExitCode.NOT_JUDGED)
    raise click.exceptions.Exit(ExitCode.OK if answer.goes else ExitCode.REFUSED)


def _show(answer: Answer, judge: "Judge", *, show_same: bool) -> None:
    echo(_conclusion(answer))
    if answer.options:
        click.echo("  if the guest can do with that:")
    for option in answer.options:
        for part in _to_paste(option):
            click.echo(f"    {part}")
    if answer.losses:
        echo("  if it can do without what it loses, and live with what it meets, each by its name:", indent=4)
    for loss in answer.losses:
        click.echo(f"    {loss}")
    if show_same:
        for register in answer.same:
            click.echo(f"{'same':9} {describe(register).name}")
    _show_kind(answer)
    _show_verdicts(answer)
    _list("The destination has less of what the guest was told:", answer.lost)
    _list("The hosts differ in more than registers:", answer.differences)
    _show_errata(answer)
    _list(
        "Known faults of the hosts' kernels that the guest meets, by their versions; a distribution's may be mended:",
        (f"the {fault.side.value}'s ({fault.name}): {fault.what}" for fault in answer.kernel_faults),
    )
    if judge.host is not None and judge.host.others is None:
        known = counted(len(judge.host.values), "register")
        echo(f"Nothing but {known} was compared; a whole profile ('host probe', 'host learn') tells more.")


def _show_kind(answer: Answer) -> None:
    """Say what the guest's vCPUs are, and how the destination has to be started."""
    if answer.start is None:
        return
    echo(f"Its vCPUs have {named(answer.kinds[0])}. The destination has to be started with {answer.start.qemu}")
    if answer.start.libvirt:
        echo(f"  libvirt: {answer.start.libvirt}", indent=4)


def _to_paste(option: str) -> "Iterable[str]":
    """Yield an option whose list is long as several that fit a terminal; given together, they say the same."""
    name, _, rest = option.partition(" ")
    line = ""
    for item in rest.split(","):
        if line and len(f"    {line},{item}") > COLUMNS:
            yield line
            line = ""
        line = f"{line},{item}" if line else f"{name} {item}"
    yield line


def _show_verdicts(answer: Answer) -> None:
    """Print a table by register: equal verdicts of several vCPUs once, and under each what it rests on."""
    groups: dict[tuple[int, Action, int | None, int | None, str, str], list[Verdict]] = {}
    for one in answer.verdicts:
        groups.setdefault((one.register, one.action, one.old, one.new, one.rule, one.why), []).append(one)
    order = {register: place for place, register in enumerate(dict.fromkeys(one.register for one in answer.verdicts))}
    for those in sorted(groups.values(), key=lambda those: (order[those[0].register], those[0].vcpu)):
        one = those[0]
        which = "" if len(those) == answer.vcpus else f" (vCPU {_ranges(verdict.vcpu for verdict in those)})"
        echo(f"{_WORDS[one.action]:9} {one.name}{which}  {_values(one)}".rstrip(), indent=12)
        way_out = one.advice if one.action is Action.REFUSE and not one.option else ""
        for line in (one.why, what_the_guest_sees(one), one.rule, way_out):
            if line:
                echo(f"{'':12}{line}", indent=12)


def _values(one: Verdict) -> str:
    here, there = _hexadecimal(one.old), _hexadecimal(one.new)
    match one.action:
        case Action.SWAP:
            return f"{here} -> {there}"
        case Action.DROP:
            return "" if one.old is None else here  # a profile does not tell the guest's own values
        case _:
            return f"{here} here, {there} there"


def _show_errata(answer: Answer) -> None:
    errata = answer.errata
    if errata.unguarded:
        _list(
            "ERRATA of the destination's processor that a guest from the source has no workaround for:",
            map(_erratum, errata.unguarded),
        )
    others = [erratum for erratum in errata.new if erratum not in errata.unguarded]
    _list("Errata that only the destination's processor has:", map(_erratum, others))
    _list("Errata that only the source's processor has:", map(_erratum, errata.gone))


def _erratum(erratum: "Erratum") -> str:
    return f"{erratum} ({erratum.scope.value}): {erratum.summary}"


def _list(head: str, lines: "Iterable[str]") -> None:
    shown = list(lines)
    if shown:
        echo(head)
        for line in shown:
            echo(f"  {line}", indent=4)


def _conclusion(answer: Answer) -> str:
    if not answer.vcpus:
        return "Not judged: the stream holds no arm64 vCPU; the proxy would pass it on as it is."
    counts = {action: len(answer.registers(action)) for action in Action}
    refused = counts[Action.REFUSE]
    if not answer.goes and not refused:
        faults = counted(len(answer.kernel_faults), "known fault")
        return f"The guest cannot go, as --strict has it: it meets {faults} of the hosts' kernels."
    if not answer.goes:
        return f"The guest cannot go: {counted(refused, 'register')} {'is' if refused == 1 else 'are'} refused."
    changes = " and ".join(
        f"{counted(counts[action], 'register')} {_WORDS[action]}"
        for action in (Action.SWAP, Action.DROP)
        if counts[action]
    )
    if answer.direct is False:
        return f"The guest can go through the proxy, with {changes}; directly it is refused."
    unneeded = f"; through the proxy it goes with {changes} all the same" if changes else ""
    if answer.assumed:
        return (
            "It is not known whether the destination takes the guest as it is: its profile does not tell which values "
            f"its KVM takes ('host probe', or 'host learn --kernel', does); through the proxy it goes with {changes}."
        )
    if answer.direct is None:
        return f"Nothing that is known of the destination speaks against the guest{unneeded}."
    return f"The destination takes the guest as it is; no register has to be swapped{unneeded}."


def _hexadecimal(value: int | None) -> str:
    return "(none)" if value is None else f"{value:#x}"


def _ranges(numbers: "Iterable[int]") -> str:
    return ", ".join(str(number) for number in sorted(numbers))
