"""`vmstate-proxy run`."""

from contextlib import suppress

import click

from proxy.cli.options import JudgeOptions, judge_options
from proxy.cli.reporting import report_file
from proxy.cli.tls import TlsOptions, tls_options
from proxy.session import DEFAULT_VMDESC_WAIT


@click.command("run")
@click.option("--listen", required=True, metavar="URI", help="Where sources connect: tcp:HOST:PORT; port 0 takes any.")
@click.option("--connect", required=True, metavar="URI", help="Where the destination QEMU listens: tcp:HOST:PORT.")
@click.option("--once", is_flag=True, help="Take one migration, then exit with its exit code.")
@click.option("--report", metavar="FILE", help="Write a line of JSON for each migration; - is standard output.")
@click.option(
    "--allow-no-return-path",
    is_flag=True,
    help="Take sources without the capability return-path. RISK: such a source gives up its guest as soon as all is "
    "sent. If the destination, or this proxy, then fails, the guest is lost.",
)
@click.option(
    "--vmdesc-wait",
    metavar="SECONDS",
    type=click.FloatRange(0.01, 60),
    default=DEFAULT_VMDESC_WAIT,
    show_default=True,
    help="How long to wait for a vmdesc that may not come (machine property suppress-vmdesc=on).",
)
@click.option(
    "--source",
    metavar="FILE",
    help="What the guests of the source look like: its host profile, or the stream of such a guest. What would be "
    "refused in postcopy is then refused when postcopy is announced, and not when the guest has stopped.",
)
@tls_options
@judge_options
def command(
    *,
    listen: str,
    connect: str,
    once: bool,
    report: str | None,
    allow_no_return_path: bool,
    vmdesc_wait: float,
    source: str | None,
    tls: TlsOptions,
    options: JudgeOptions,
) -> None:
    """Carry live migrations from --listen to the destination at --connect.

    Migrations may come one after the other and at the same time. What cannot be located or may not be changed ends its
    migration with a reset on both sides, while the source still has its guest. After SIGTERM or ctrl-C no more
    migrations are taken, and those under way go on to their end; a second one resets them.

    Without a host in --listen, the loopback interface is taken: the stream holds the guest's memory in the clear.

    \b
    Examples:
      # One migration to a destination whose processor id is 0x411fd073; 0x411fd070 is close enough.
      vmstate-proxy run --listen tcp:127.0.0.1:4444 --connect tcp:127.0.0.1:4446 --once \\
          --midr 0x411fd073 --allow-midr 0x411fd070 --report -
      # A service before a destination that is known by its profile.
      vmstate-proxy run --listen tcp:[::1]:4444 --connect tcp:10.0.0.7:49152 \\
          --host rack7.toml --policy policy.toml --report migrations.jsonl
      # TLS on both sides, each with credentials of its own, as in QEMU's tls-creds-x509.
      vmstate-proxy run --listen tcp:10.0.0.1:4444 --listen-tls pki/here --connect tcp:rack7:49152 \\
          --connect-tls pki/there --host rack7.toml --policy policy.toml
    """
    import trio

    from proxy.address import parse_address
    from proxy.relay import Relay
    from proxy.route import Route
    from proxy.session import SessionConfig
    from proxy.source import read_source

    address = parse_address(listen)
    config = SessionConfig(
        route=Route(parse_address(connect), tls.client),
        judge=options.judge,
        allow_no_return_path=allow_no_return_path,
        device_state_limit=options.device_state_limit,
        vmdesc_wait=vmdesc_wait,
        source=() if source is None else read_source(source),
    )
    with report_file(report) as add:
        exit_code = trio.run(Relay(config, once, say, add, tls.server).run, address)
    raise click.exceptions.Exit(exit_code)


def say(line: str) -> None:
    """Print a line for the operator at once; migrations go on when nobody reads it."""
    with suppress(OSError):
        click.echo(f"vmstate-proxy: {line}", err=True)
