"""`vmstate-proxy run`."""

import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
from click.core import ParameterSource

from formats.errors import FormatError
from proxy.cli.options.configured import Configured
from proxy.cli.options.judging import JudgeOptions, judge_options
from proxy.cli.options.limits import limit_options
from proxy.cli.options.logs import log_options
from proxy.cli.options.redirecting import mark_option, ports_option
from proxy.cli.options.tls import TlsOptions, tls_options
from proxy.cli.reporting import ReportFile, report_file
from proxy.errors import ConfigError, ProxyError, exit_code_of
from proxy.live.descriptors import take_all
from proxy.live.session_config import DEFAULT_VMDESC_WAIT, Limits, SessionConfig
from proxy.log import LOG
from proxy.net.address import parse_address
from proxy.net.allowed_sources import parse_networks
from proxy.net.binding import bound
from proxy.net.redirection import PortRange
from proxy.stop_signals import held_back

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proxy.fleet.destinations import Destinations
    from proxy.judging.judge import Judge
    from proxy.judging.verdict import Registers
    from proxy.net.address import Address
    from proxy.net.binding import Bound
    from proxy.net.transparent import Redirection
    from proxy.policy.policy import Policy


@click.command("run", cls=Configured, short_help="Carry live migrations to a destination.")
@click.option(
    "--listen",
    required=True,
    multiple=True,
    metavar="URI",
    help="Where sources connect: tcp:HOST:PORT; port 0 takes any. Can be given several times.",
)
@click.option(
    "--allow-source",
    metavar="NETWORK",
    multiple=True,
    help="Take connections from there only, as 10.0.0.0/24 or one address. Can be given several times; by default from "
    "anywhere that can reach --listen.",
)
@click.option("--connect", metavar="URI", help="Where the destination QEMU listens: tcp:HOST:PORT.")
@click.option(
    "--transparent",
    is_flag=True,
    help="In place of --connect: take connections that nftables redirected here, and dial where they were going; see "
    "'transparent rules'. Needs root or CAP_NET_ADMIN.",
)
@ports_option
@mark_option
@click.option("--once", is_flag=True, help="Take one migration, then exit with its exit code.")
@click.option("--report", metavar="FILE", help="Write a line of JSON for each migration; - is standard output.")
@click.option(
    "--metrics",
    metavar="URI",
    help="Serve metrics for Prometheus, /healthz and /readyz over HTTP at tcp:HOST:PORT; without a host, on loopback.",
)
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
    help="How long to wait for a vmdesc that may not come (machine property suppress-vmdesc=on), where nothing else "
    "tells for certain where the sections end.",
)
@click.option(
    "--source",
    metavar="FILE",
    help="What the guests of the source look like: its host profile, or the stream of such a guest. What would be "
    "refused in postcopy is then refused when postcopy is announced, and not when the guest has stopped.",
)
@click.option(
    "--destination-qmp",
    metavar="SOCKET",
    help="A QMP socket of the destination's QEMU, a path or HOST:PORT, to ask what its -cpu turns off; for --kvm. "
    "Without, the process that listens at the dialled port is looked at, where it is on this host.",
)
@click.option(
    "--hosts",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Many destinations: a folder with a profile for each, as rack7.toml or 10.0.0.7.toml, or any name with "
    "addresses = [...] in it. That of the host which is dialled counts; hosts without one are refused.",
)
@click.option(
    "--default-host", metavar="FILE", type=click.Path(path_type=Path), help="With --hosts: the profile of all others."
)
@click.option(
    "--require-tls",
    is_flag=True,
    help="With --transparent, where redirected connections may speak TLS or plain text: refuse those in plain text.",
)
@tls_options
@limit_options
@log_options
@judge_options
def command(
    *,
    listen: tuple[str, ...],
    allow_source: tuple[str, ...],
    connect: str | None,
    transparent: bool,
    ports: PortRange,
    mark: int,
    once: bool,
    report: str | None,
    metrics: str | None,
    allow_no_return_path: bool,
    vmdesc_wait: float,
    source: str | None,
    destination_qmp: str | None,
    hosts: Path | None,
    default_host: Path | None,
    require_tls: bool,
    tls: TlsOptions,
    limits: Limits,
    options: JudgeOptions,
) -> "SessionConfig":
    """Carry live migrations from --listen to the destination at --connect, or --transparent to where they were going.

    Migrations may come one after the other and at the same time. What cannot be located or may not be changed ends its
    migration with a reset on both sides, while the source still has its guest. After SIGTERM or ctrl-C no more
    migrations are taken, and those under way go on to their end; a second one resets them. SIGHUP ends nothing: policy,
    profiles and --config are read anew, for the migrations that come from then on, and the --report file is opened
    anew, so that it can be rotated. What is wrong in them is said, and changes nothing.

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
      # One proxy on a source host for a whole fleet; each destination has its profile in a file of its name:
      vmstate-proxy run --transparent --listen tcp:127.0.0.1:4444 --hosts /etc/vmstate-proxy/hosts --policy policy.toml
      # All migrations to this host, without a change to libvirt or OpenStack; 'transparent rules' redirects them.
      vmstate-proxy run --transparent --listen tcp:0.0.0.0:4444 --listen tcp:[::]:4444 \\
          --kvm --policy policy.toml --report migrations.jsonl
      # The same where the hosts migrate with TLS (virsh migrate --tls), with the host's own credentials:
      vmstate-proxy run --transparent --listen tcp:0.0.0.0:4444 --tls /etc/pki/qemu --require-tls \\
          --kvm --policy policy.toml --report migrations.jsonl
    """
    context = click.get_current_context()
    _check(context, connect=connect, transparent=transparent, require_tls=require_tls, tls=tls)
    judge = options.judge if destination_qmp is None else _asking_by_qmp(options.judge, destination_qmp)
    fixed = _Fixed(listen, connect, transparent, str(ports), mark, once, report, metrics)

    def config(onward: "Address | Redirection") -> "SessionConfig":
        from proxy.net.route import Route

        return SessionConfig(
            route=Route(onward, tls.client, tls_follows=transparent and tls.server is not None),
            judge=judge,
            allow_no_return_path=allow_no_return_path,
            device_state_limit=options.device_state_limit,
            vmdesc_wait=vmdesc_wait,
            source=vcpus,
            tls=tls.server,
            plain_too=transparent and not require_tls,
            sources=sources,
            limits=limits,
            destinations=destinations,
        )

    addresses = [parse_address(text) for text in listen]
    destination = None if connect is None else parse_address(connect)
    sources = parse_networks(allow_source)
    vcpus = () if source is None else _read_source(source)
    destinations = _destinations(hosts, default_host, judge.policy)
    if isinstance(context.obj, _Serving):
        return context.obj.changed(fixed, config)
    take_all()
    with held_back(), bound(addresses) as bounds, report_file(report) as reports, ExitStack() as around:
        onward = destination or _redirection(ports, mark, bounds)
        for one in bounds:
            LOG.info(f"listening on {one.name}, for {f'the destination at {destination}' if destination else onward}")
        # Sources can connect; what carries them takes longer to load than all before.
        import trio

        from proxy.live.relay import Relay
        from proxy.service.surroundings import Surroundings

        service = Surroundings(os.environ)
        if metrics is not None:
            for one in around.enter_context(service.metrics_at(metrics)):
                LOG.info(f"metrics and health at http://{one.name.removeprefix('tcp:')}/metrics, /healthz and /readyz")
        relay = Relay(
            config(onward),
            LOG,
            reports.add,
            once=once,
            reload=partial(_Serving(fixed, onward, reports).reload, context),
            watchers=service.watchers,
            companions=service.companions,
        )
        service.surround(relay)
        exit_code = trio.run(relay.run, *bounds)
    raise click.exceptions.Exit(exit_code)


class _Fixed(NamedTuple):
    """What is settled when the service starts."""

    listen: tuple[str, ...]
    connect: str | None
    transparent: bool
    ports: str
    mark: int
    once: bool
    report: str | None
    metrics: str | None


@dataclass(frozen=True, slots=True)
class _Serving:
    """A service that runs, and may be told to read its settings anew.

    Attributes:
        fixed: What does not change.
        onward: Where migrations go on to.
        reports: Where their reports go.
    """

    fixed: _Fixed
    onward: "Address | Redirection"
    reports: ReportFile

    def reload(self, context: click.Context) -> "SessionConfig":
        """Read anew what the operator decides, and open the report's file anew.

        Raises:
            ProxyError: Something is wrong; nothing has changed.
        """
        again = command
        assert isinstance(again, Configured)
        try:
            config: SessionConfig = again.again(context, self)
        except click.ClickException as error:
            raise ConfigError(error.format_message()) from error
        self.reports.reopen()
        reports = "" if self.fixed.report is None else ", and the report's file was opened anew"
        LOG.info(f"SIGHUP: settings, policy and profiles were read anew{reports}; migrations go on as they began")
        return config

    def changed(self, fixed: _Fixed, config: "Callable[[Address | Redirection], SessionConfig]") -> "SessionConfig":
        """Return what counts from now on, and say what would, were the service started anew."""
        for name, before, after in zip(_Fixed._fields, self.fixed, fixed, strict=True):
            if before != after:
                LOG.warning(
                    f"SIGHUP: --{name} counts from the next start on; it stays {before!r}, and is now {after!r}"
                )
        return config(self.onward)


def _check(
    context: click.Context, *, connect: str | None, transparent: bool, require_tls: bool, tls: TlsOptions
) -> None:
    """See that the options fit each other."""
    if transparent == (connect is not None):
        raise click.UsageError(
            "say where migrations go on to: --connect URI, or --transparent for where redirected ones were going"
        )
    if require_tls and not (transparent and tls.server):
        raise click.UsageError("--require-tls belongs to --transparent with --tls or --listen-tls")
    for option in ("ports", "mark"):
        if not transparent and context.get_parameter_source(option) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--{option} belongs to --transparent")


def _redirection(ports: PortRange, mark: int, bounds: "Sequence[Bound]") -> "Redirection":
    from proxy.net.transparent import Redirection

    redirection = Redirection(ports, mark)
    redirection.prepare(bounds)
    return redirection


def _asking_by_qmp(judge: "Judge", socket: str) -> "Judge":
    if judge.trial is None:
        raise click.UsageError("--destination-qmp belongs to --kvm, which asks this host")
    from proxy.judging.kernel_trial import KernelTrial

    return replace(judge, trial=KernelTrial(socket))


def _destinations(hosts: Path | None, default: Path | None, policy: "Policy") -> "Destinations | None":
    if hosts is None:
        if default is not None:
            raise click.UsageError("--default-host belongs to --hosts")
        return None
    from proxy.fleet.destinations import load_destinations
    from proxy.hosts.profile_file import load_profile

    return load_destinations(hosts, policy, None if default is None else load_profile(default))


def _read_source(name: str) -> "Sequence[Registers]":
    from formats.stream.trailing import Trailing
    from proxy.captures.stream_or_profile import read_source

    try:
        return read_source(name, trailing=Trailing())
    except FormatError as error:
        problem = ProxyError(f"--source {name}: {error}")
        problem.exit_code = exit_code_of(error)
        raise problem from error
