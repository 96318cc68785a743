"""`vmstate-proxy record`."""

import click

from proxy.cli.options.files import check_is_free, force_option
from proxy.cli.options.given_once import OnceEach
from proxy.cli.options.tls import TlsOptions, tls_options
from proxy.log import LOG, set_up_log
from proxy.stdio import STDIO
from proxy.stop_signals import outlive_the_terminal


@click.command("record", cls=OnceEach, short_help="Take one migration and keep what its source sends.")
@click.argument("target", metavar="OUT")
@click.option(
    "--listen", required=True, metavar="URI", help="Where the source connects: tcp:HOST:PORT; port 0 takes any."
)
@click.option(
    "--connect",
    metavar="URI",
    help="Where the destination QEMU listens: tcp:HOST:PORT. All is passed on to it, and back, untouched. Without it, "
    "the source keeps its guest.",
)
@click.option(
    "--allow-no-return-path",
    is_flag=True,
    help="Without --connect, take sources without the capability return-path, too. RISK: such a source cannot be told "
    "to keep its guest: it stops it as soon as all is sent.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON that says what came of it.")
@tls_options
@force_option
def command(
    *,
    target: str,
    listen: str,
    connect: str | None,
    allow_no_return_path: bool,
    as_json: bool,
    tls: TlsOptions,
    force: bool,
) -> None:
    """Take one migration, and keep in OUT what the source sends, byte for byte.

    With --connect the guest moves to the destination as it would without the recording. Without it, the source is
    answered as a destination would, up to the end; then it is told that its guest was not taken, and lets it run on.
    For QEMU that is a migration that failed.

    While it is written, OUT is called OUT.partial; it gets its name when it is complete. If the stream breaks off,
    OUT.partial stays, and the exit code is 3. A stream that is not understood is recorded all the same; it is complete
    if the destination then says that it has the guest. OUT is packed if it ends in .xz or .gz, which may slow the
    migration down; - is standard output.

    One connection is taken, so multifd and postcopy-preempt must be off; without --connect, so must postcopy and
    switchover-ack. SIGTERM or ctrl-C ends the waiting; a recording that has begun goes on to its end, unless a second
    one breaks it off.

    OUT holds the guest's memory in the clear: keep it safe. Without a host in --listen, the loopback interface is
    taken.

    \b
    Examples:
      # Have a running guest on file. In the source's monitor:
      #   migrate_set_capability return-path on
      #   migrate -d tcp:127.0.0.1:4444
      vmstate-proxy record --listen tcp:127.0.0.1:4444 guest.stream
      # Record a migration between two hosts while it happens, and look at what passed:
      vmstate-proxy record --listen tcp:127.0.0.1:4444 --connect tcp:10.0.0.7:49152 guest.stream.xz
      vmstate-proxy inspect guest.stream.xz
      # The same where the two speak TLS, with the credentials of this host:
      vmstate-proxy record --listen tcp:10.0.0.1:4444 --connect tcp:rack7:49152 --tls /etc/pki/qemu guest.stream
    """
    import trio

    from proxy.net.address import parse_address
    from proxy.recording.record import record
    from proxy.recording.recorder import RecordConfig
    from proxy.recording.recording_file import RecordingFile

    if target == STDIO and as_json:
        raise click.UsageError("OUT and --json cannot both be standard output")
    check_is_free(target, force=force)
    config = RecordConfig(
        None if connect is None else parse_address(connect),
        allow_no_return_path,
        source_tls=tls.server,
        destination_tls=tls.client,
    )
    address = parse_address(listen)
    outlive_the_terminal()
    set_up_log()
    report = trio.run(record, address, config, RecordingFile(target), LOG.info)
    if as_json:
        click.echo(report.as_json())
    LOG.info(report.summary())
    raise click.exceptions.Exit(report.exit_code)
