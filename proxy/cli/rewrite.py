"""`vmstate-proxy rewrite`."""

import sys

import click

from formats.errors import FormatError
from proxy.captures.rewriting import rewrite_in_place, rewrite_to
from proxy.captures.stream_files import open_stream
from proxy.cli.options.given_once import OnceEach
from proxy.cli.options.judging import JudgeOptions, judge_options
from proxy.cli.options.strict import strict_option
from proxy.cli.progress import progress_on
from proxy.cli.reporting import report_file
from proxy.errors import RefusedError
from proxy.policy.policy import Mode
from proxy.report.report import cause_of
from proxy.rewriter.rewriter import Rewriter
from proxy.stdio import STDIO


@click.command("rewrite", cls=OnceEach, short_help="Rewrite a captured stream, as run would.")
@click.argument("source", metavar="IN")
@click.argument("target", metavar="[OUT]", required=False)
@click.option("--in-place", is_flag=True, help="Change IN itself, which must not be packed, and write no OUT.")
@click.option("--report", metavar="FILE", help="Write the report as JSON; - is standard output.")
@strict_option
@judge_options
def command(
    *, source: str, target: str | None, in_place: bool, report: str | None, strict: bool, options: JudgeOptions
) -> None:
    """Rewrite the captured stream IN to OUT, or in place, as a migration would be; - is standard input or output.

    IN may be packed with xz, gzip, bzip2 or zstd; OUT is packed if its name ends in .xz, .gz, .bz2 or .zst. IN may be a
    libvirt save file, too: OUT then is one, with the same XML, packed in the same way. OUT appears only when it is
    complete: a stream that is broken or refused leaves no file behind.

    Of a mapped-ram file (QEMU 9.0 and newer; libvirt's format sparse) OUT is a copy with the same holes, and pages are
    not looked at. IN may be file:PATH,offset=N as for QEMU; OUT has the same N bytes before the stream. What follows
    the stream in IN, as in a state volume of Proxmox VE, keeps its place, too.

    With --in-place, all of IN is judged first; then only the bytes that change are written, and shortly before, a
    note of them: IN.unfinished, which goes when they are on the disk. Should this program or the machine stop in
    between, the same command finishes it; until then, give IN to no QEMU. No QEMU may have IN open meanwhile.

    \b
    Examples:
      # Capture a guest in its QEMU's monitor:  migrate "exec:cat > guest.stream"
      vmstate-proxy rewrite guest.stream moved.stream --host rack7.toml --allow-midr 0x411fd070 --report -
      # A guest that libvirt saved, for a restore on another host:
      vmstate-proxy rewrite guest.save moved.save --host rack7.toml --policy policy.toml
      # The same, without a copy, whatever the size of its memory:
      vmstate-proxy rewrite guest.save --in-place --host rack7.toml --policy policy.toml
      # Only look at what would be swapped and left out:
      vmstate-proxy rewrite guest.stream --in-place --host rack7.toml --mode observe --report -
    """
    if in_place == (target is not None):
        raise click.UsageError("give either OUT or --in-place")
    if in_place and source == STDIO:
        raise click.UsageError("standard input cannot be changed in place; give OUT")
    if target == STDIO and report == STDIO:
        raise click.UsageError("OUT and --report cannot both be standard output")
    rewriter = Rewriter(
        options.judge, live=False, device_state_limit=options.device_state_limit, take_trailing=not strict
    )
    changing = in_place and options.judge.policy.mode is not Mode.OBSERVE
    rewriter.report.begin(source, source if target is None else target)
    with report_file(report) as reports:
        try:
            with open_stream(source, update=changing) as stream, progress_on(source, stream) as progress:
                if target is None:
                    if rewrite_in_place(stream, rewriter, progress):
                        click.echo(f"vmstate-proxy: {source}: finished an earlier rewrite, which broke off", err=True)
                else:
                    rewrite_to(stream, target, rewriter, progress)
        except (FormatError, RefusedError):
            pass  # the report has it
        except BaseException as error:
            rewriter.report.failed(str(error) or type(error).__name__, cause_of(error))
            raise
        finally:
            rewriter.report.end()
            reports.add(rewriter.report)
    if report != STDIO or not sys.stdout.isatty():  # whoever reads the report there needs no second one
        click.echo(f"vmstate-proxy: {source}: {rewriter.report.summary()}", err=True)
    raise click.exceptions.Exit(rewriter.report.exit_code)
