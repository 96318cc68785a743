"""`vmstate-proxy report`."""

import json
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

import click

from proxy.cli.lines import echo
from proxy.cli.options.given_once import OnceEach
from proxy.errors import ConfigError, ProxyError
from proxy.report.reading import Line, read_reports, since
from proxy.stdio import STDIO

_AGO: Final = re.compile(r"(\d+)\s*(s|min|h|d|w)")
_UNITS: Final = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _moment(_context: click.Context, _option: click.Parameter, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        if ago := _AGO.fullmatch(text.strip()):
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigError(
            f"--since {text!r}: write how long ago, as 90s, 30min, 12h, 7d or 2w, or when, as 2026-11-27 or "
            "2026-11-27T13:40Z; without a zone it is local time"
        ) from None


@click.command("report", cls=OnceEach, short_help="Show the reports that run and rewrite wrote.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--refused", is_flag=True, help="Only migrations that were refused.")
@click.option("--failed", is_flag=True, help="Only migrations that failed; with --refused, both.")
@click.option("--since", metavar="TIME", callback=_moment, help="Only what began since then: 12h, 7d, 2026-11-27.")
@click.option("--guest", metavar="NAME", help="Only the guest of that name or UUID.")
@click.option("--json", "as_json", is_flag=True, help="Print the lines as they stand in the files.")
def command(
    *, files: tuple[str, ...], refused: bool, failed: bool, since: datetime | None, guest: str | None, as_json: bool
) -> None:
    """Show what stands in FILEs that 'run --report' or 'rewrite --report' wrote: a line for each migration.

    Each line says when the migration began (UTC), what became of it, how long it took, where it went, which guest it
    was, and what was changed or went wrong. - is standard input. Reports of older versions are read, too; what they do
    not say is shown as -.

    \b
    Examples:
      vmstate-proxy report /var/log/vmstate-proxy/migrations.jsonl --since 7d
      # What has to be looked into:
      vmstate-proxy report migrations.jsonl.1 migrations.jsonl --refused --failed
      # How long the guests stood for it, with jq:
      vmstate-proxy report migrations.jsonl --json | jq .seconds.held
    """
    outcomes = {name for name, wanted in (("refused", refused), ("failed", failed)) if wanted}
    shown = 0
    for line in _lines(files, since):
        if outcomes and line.outcome not in outcomes:
            continue
        if guest is not None and guest not in (line.found.get("guest") or {}).values():
            continue
        shown += 1
        echo(json.dumps(line.found) if as_json else _row(line), indent=2)
    if not shown:
        click.echo("vmstate-proxy: no such migrations", err=True)


def _lines(files: tuple[str, ...], moment: datetime | None) -> Iterator[Line]:
    for name in files:
        try:
            with sys.stdin.buffer if name == STDIO else open(name, "rb") as file:
                lines = read_reports(name, file)
                yield from lines if moment is None else since(lines, moment)
        except OSError as error:
            raise ProxyError(f"{name}: {error.strerror}") from error


def _row(line: Line) -> str:
    found = line.found
    when = "-" if line.started is None else f"{line.started:%Y-%m-%d %H:%M:%SZ}"
    took = "-" if line.seconds is None else f"{line.seconds:.1f} s"
    ends = f"{found.get('source') or '-'} -> {found.get('destination') or '-'}"
    what = ", ".join(line.registers) or "-"
    row = f"{when:<20}  {line.outcome:<9}  {took:>8}  {ends}  {line.guest or '-'}  {what}"
    return f"{row}  {found['reason']}" if found.get("reason") else row
