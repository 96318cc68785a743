"""`vmstate-proxy rewrite`."""

import click

from formats.errors import FormatError
from proxy.cli.options import JudgeOptions, judge_options
from proxy.cli.progress import progress_on
from proxy.cli.reporting import report_file
from proxy.errors import RefusedError
from proxy.files import STDIO, open_stream, packing_file
from proxy.offline import rewrite
from proxy.rewriter import Rewriter


@click.command("rewrite")
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option("--report", metavar="FILE", help="Write the report as JSON; - is standard output.")
@judge_options
def command(*, source: str, target: str, report: str | None, options: JudgeOptions) -> None:
    """Rewrite the captured stream IN to OUT as a migration would be; - is standard input or output.

    IN may be packed with xz, gzip, bzip2 or zstd; OUT is packed if its name ends in .xz, .gz, .bz2 or .zst. IN may be a
    libvirt save file, too: OUT then is one, with the same XML, packed in the same way. OUT appears only when it is
    complete: a stream that is broken or refused leaves no file behind.

    \b
    Examples:
      # Capture a guest in its QEMU's monitor:  migrate "exec:cat > guest.stream"
      vmstate-proxy rewrite guest.stream moved.stream --host rack7.toml --allow-midr 0x411fd070 --report -
      # A guest that libvirt saved, for a restore on another host:
      vmstate-proxy rewrite guest.save moved.save --host rack7.toml --policy policy.toml
      # Only look at what would be changed:
      vmstate-proxy rewrite guest.stream /dev/null --host rack7.toml --mode observe --report -
    """
    if target == STDIO and report == STDIO:
        raise click.UsageError("OUT and --report cannot both be standard output")
    rewriter = Rewriter(options.judge, live=False, device_state_limit=options.device_state_limit)
    with report_file(report) as add:
        try:
            with (
                open_stream(source) as stream,
                packing_file(target, stream.envelope) as sink,
                progress_on(source, stream) as progress,
            ):
                rewrite(stream, sink, rewriter, progress)
        except (FormatError, RefusedError):
            pass  # the report has it
        except BaseException as error:
            rewriter.report.failed(str(error) or type(error).__name__)
            raise
        finally:
            add(rewriter.report)
    click.echo(f"vmstate-proxy: {source}: {rewriter.report.summary()}", err=True)
    raise click.exceptions.Exit(rewriter.report.exit_code)
