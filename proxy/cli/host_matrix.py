"""`vmstate-proxy host matrix`."""

import json
import os
from pathlib import Path

import click

from proxy.captures.complete_file import complete_file
from proxy.cli.lines import echo, terminal_width
from proxy.cli.options.given_once import OnceEach
from proxy.cli.options.judging import policy_options
from proxy.cli.progress import counting
from proxy.errors import ConfigError
from proxy.fleet.host import FleetHost
from proxy.fleet.matrix import Fleet, in_short, judge_fleet, steps_of
from proxy.hosts.profile_file import load_profile
from proxy.policy.policy import Policy


@click.command("matrix", cls=OnceEach, short_help="Tell who can go where, for every pair of hosts.")
@click.argument("profiles", metavar="PROFILE...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--html", metavar="FILE", help="Write a page with a heat map whose cells open the verdicts.")
@policy_options
def command(*, profiles: tuple[str, ...], as_json: bool, html: str | None, policy: Policy) -> None:
    """Tell who can go where: a guest that starts on each host, judged against every other host.

    PROFILEs are made by 'host probe' or 'host learn'; hosts are called by their files' names. Groups are sets of hosts
    that can all reach each other: what a scheduler would make a host aggregate of. Baselines are flags of -cpu host
    that guests are started with, so that hosts take each other's with no change, with MIDR_EL1 alone, or more of them;
    --json has them as libvirt XML, too.

    \b
    Examples:
      vmstate-proxy host matrix rack*.toml --policy policy.toml
      vmstate-proxy host matrix rack*.toml --policy policy.toml --html fleet.html
      vmstate-proxy host matrix rack*.toml --json | jq .groups
    """
    hosts = [_load(name) for name in profiles]
    names = [host.name for host in hosts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two profiles are called {twice}; give the files names that differ")
    if len(hosts) < 2:
        raise click.UsageError("give two profiles at least")
    with counting(steps_of(hosts), "pairs and ways to start guests") as progress:
        fleet = judge_fleet(hosts, policy, progress)
    if html is not None:
        from proxy.fleet.page import render

        with complete_file(html) as file:
            file.write(render(fleet, f"mode {policy.mode.value}, {len(policy.whitelist)} whitelisted").encode())
        click.echo(f"vmstate-proxy: {html}: {len(fleet.answers)} pairs", err=True)
    if as_json:
        click.echo(json.dumps(fleet.as_dict(), indent=1))
    elif html is None:
        _show(fleet)


def _load(name: str) -> FleetHost:
    profile = load_profile(Path(name))
    if profile.others is None:
        raise ConfigError(f"{name}: it does not list all registers (also_present); make it anew with 'host probe'")
    return FleetHost(os.path.basename(name).removesuffix(".toml"), profile)


def _show(fleet: Fleet) -> None:
    names = [host.name for host in fleet.hosts]
    lines = _table(fleet, names)
    columns = terminal_width()
    if columns is None or max(map(len, lines)) <= columns:
        for line in lines:
            click.echo(line)
    else:
        _show_by_source(fleet, names)
    click.echo("\nGroups, in which all can reach each other:")
    for group in fleet.groups():
        echo(f"  {', '.join(group)}", indent=4)
    _show_baselines(fleet)


def _show_baselines(fleet: Fleet) -> None:
    if not fleet.baselines:
        echo("\nNo flags of -cpu host, given when guests are started, bring more of these hosts together.")
        return
    echo("\nBaselines: guests that are started so, on any host of a line, can go to all others of it:")
    costs: dict[str, dict[str, None]] = {}
    for baseline in fleet.baselines:
        echo(f"  {baseline.start.qemu}: {', '.join(baseline.hosts)}: {baseline.in_short()}", indent=4)
        for cost in baseline.costs:
            costs.setdefault(f"{cost.name}=off: no {cost.loses}", {}).update(dict.fromkeys(cost.fields))
    if costs:
        click.echo("\nWhat that costs a guest, on hosts that would give it:")
    for what, fields in costs.items():
        echo(f"  {what} ({', '.join(fields)})", indent=4)


def _table(fleet: Fleet, names: list[str]) -> list[str]:
    rows = [
        [source, *(in_short(fleet.answers[source, name]) if name != source else "-" for name in names)]
        for source in names
    ]
    table = [["from \\ to", *names], *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(names) + 1)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _show_by_source(fleet: Fleet, names: list[str]) -> None:
    """Print what the table holds, for a terminal that is too narrow for it."""
    for source in names:
        click.echo(f"from {source} to")
        answers: dict[str, list[str]] = {}
        for name in names:
            if name != source:
                answers.setdefault(in_short(fleet.answers[source, name]), []).append(name)
        for answer, those in answers.items():
            echo(f"  {', '.join(those)}: {answer}", indent=4)
