"""`vmstate-proxy replay`."""

import click

from proxy.captures.offline import count_the_rest
from proxy.captures.rewriting import holds_mapped_ram
from proxy.captures.stream_files import open_stream
from proxy.cli.options.given_once import OnceEach
from proxy.cli.options.strict import strict_option
from proxy.cli.options.tls import credentials
from proxy.cli.progress import progress_on
from proxy.errors import RefusedError
from proxy.stop_signals import outlive_the_terminal


@click.command("replay", cls=OnceEach, short_help="Send a captured stream to a destination QEMU.")
@click.argument("stream", metavar="STREAM")
@click.argument("destination", metavar="URI")
@click.option(
    "--rate",
    metavar="MIB",
    type=click.FloatRange(0, min_open=True),
    help="Send so many MiB a second; without it, as fast as the destination takes them.",
)
@click.option(
    "--tls",
    metavar="DIR",
    help="Speak TLS. DIR holds ca-cert.pem, and client-cert.pem and client-key.pem where the destination wants them.",
)
@click.option(
    "--tls-hostname", metavar="NAME", help="Whose certificate the destination must show, if not that of URI's host."
)
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON that says what came of it.")
@strict_option
def command(
    *,
    stream: str,
    destination: str,
    rate: float | None,
    tls: str | None,
    tls_hostname: str | None,
    as_json: bool,
    strict: bool,
) -> None:
    """Send the captured STREAM to the destination QEMU that listens at URI, as a source would.

    STREAM may be compressed with xz, gzip or bzip2; - is standard input. URI is tcp:HOST:PORT, and may be that of
    'vmstate-proxy run', which then rewrites the stream on its way.

    What the destination answers on the return path is heard: exit code 0 says that it has the guest. A stream that
    opened no return path gives it no way to say so; 0 then says only that all was sent, and not reset. A stream that is
    cut or broken ends with a reset, so that no destination runs a part of a guest.

    RISK: the guest of a stream runs from where it was when it was captured. If it also runs on elsewhere, it runs
    twice: see that the two do not share a disk.

    \b
    Examples:
      # The destination:  qemu-system-aarch64 ... -incoming tcp:127.0.0.1:4446
      vmstate-proxy replay guest.stream tcp:127.0.0.1:4446
      # Rewritten for another host before, and not faster than 100 MiB/s:
      vmstate-proxy rewrite guest.stream moved.stream --host rack7.toml --allow-midr 0x411fd070
      vmstate-proxy replay moved.stream tcp:10.0.0.7:49152 --rate 100
      # Straight from where it is kept:
      ssh archive cat guest.stream.xz | xz -d | vmstate-proxy replay - tcp:127.0.0.1:4446 --json
    """
    import trio

    from proxy.net.address import parse_address
    from proxy.recording.replay import Replay, replay

    if tls_hostname is not None and tls is None:
        raise click.UsageError("--tls-hostname is for --tls")
    spoken = credentials(None, tls, tls_hostname).client
    address = parse_address(destination)
    outlive_the_terminal()
    with open_stream(stream) as source, progress_on(stream, source) as progress:
        if holds_mapped_ram(source):
            raise RefusedError(
                f"{stream}: this is a mapped-ram file, which no QEMU takes from a socket; have it load the file: "
                "-incoming file:PATH, with the capability mapped-ram"
            )
        rate_in_bytes = None if rate is None else rate * (1 << 20)
        it = Replay(source, rate=rate_in_bytes, tls=spoken, take_trailing=not strict)
        report = trio.run(replay, it, address, progress)
        if report.trailing.length:
            count_the_rest(source, report.trailing)
    if as_json:
        click.echo(report.as_json())
    click.echo(f"vmstate-proxy: {stream}: {report.summary()}", err=True)
    raise click.exceptions.Exit(report.exit_code)
