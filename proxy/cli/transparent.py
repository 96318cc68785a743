"""`vmstate-proxy transparent`."""

import click

from proxy.cli.options.configured import Configured
from proxy.cli.options.given_once import OnceEachGroup
from proxy.cli.options.redirecting import mark_option, ports_option
from proxy.net.nft_rules import RuleSet, Side, parse_network
from proxy.net.redirection import PortRange


@click.group("transparent", cls=OnceEachGroup, short_help="Take migrations that nftables redirects to the proxy.")
def command() -> None:
    """Have migrations redirected to the proxy, which are then carried on to where they were going.

    Neither libvirt nor OpenStack nor QEMU has to know of it: one proxy per host covers all migrations to it.

    \b
    Example:
      vmstate-proxy run --transparent --listen tcp:0.0.0.0:4444 --kvm --policy policy.toml &
      vmstate-proxy transparent rules --listen tcp:0.0.0.0:4444 | sudo nft -f -
    """


@command.command(
    "rules", cls=Configured, shares_with="proxy.cli.run", short_help="Print the nftables rules that redirect them."
)
@click.option(
    "--listen",
    required=True,
    multiple=True,
    metavar="URI",
    help="Where the proxy listens, as it was told: tcp:HOST:PORT; once for IPv4, once for IPv6, or only one of them.",
)
@click.option(
    "--destination",
    "side",
    flag_value=Side.DESTINATION.value,
    default=True,
    help="The proxy runs on the destination host (default).",
)
@click.option("--source", "side", flag_value=Side.SOURCE.value, help="The proxy runs on the source host.")
@click.option("--gateway", "side", flag_value=Side.GATEWAY.value, help="The proxy runs on a router between the two.")
@click.option(
    "--tproxy",
    is_flag=True,
    help="Hand connections over without translating addresses (TPROXY): no connection tracking is needed, and the "
    "proxy may listen on the loopback only. Not with --source.",
)
@click.option(
    "--peers",
    metavar="NETWORK,...",
    multiple=True,
    help="Redirect only what comes from these addresses or networks; with --source, only what goes to them.",
)
@click.option(
    "--local",
    is_flag=True,
    help="With --source: redirect what this host sends to itself, too, as migrations between its own QEMUs.",
)
@ports_option
@mark_option
def rules(
    *,
    listen: tuple[str, ...],
    side: str,
    tproxy: bool,
    peers: tuple[str, ...],
    local: bool,
    ports: PortRange,
    mark: int,
) -> None:
    """Print nftables rules that redirect migrations to a proxy that runs with --transparent.

    They are a table of their own; nothing else is touched. --listen, --ports and --mark have to be those of the proxy:
    give both commands the same --config.

    On the destination host, the proxy covers all migrations that come, and judges by the host's own KVM (--kvm) or
    profile. On a source host it can know one destination's profile only: name with --peers the hosts that are like it.

    \b
    Examples:
      # All migrations that come to this host:
      vmstate-proxy transparent rules --listen tcp:0.0.0.0:4444 --listen tcp:[::]:4444 | sudo nft -f -
      # All that leave this host for one of two equal hosts:
      vmstate-proxy transparent rules --source --listen tcp:127.0.0.1:4444 --peers 10.0.0.7,10.0.0.8 | sudo nft -f -
      # An end to it:
      sudo nft delete table inet vmstate_proxy
    """
    from proxy.net.address import TcpAddress, parse_address

    listening = []
    for text in listen:
        address = parse_address(text)
        if not isinstance(address, TcpAddress):
            raise click.UsageError(f"--listen {text}: only TCP connections are redirected")
        listening.append(address)
    networks = tuple(parse_network(part.strip()) for text in peers for part in text.split(","))
    for line in RuleSet(Side(side), tuple(listening), ports, mark, networks, tproxy, local).lines():
        click.echo(line)
