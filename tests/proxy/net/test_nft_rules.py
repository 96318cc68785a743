"""The rules as text; tests/live/test_transparent.py has nft load them, and migrations follow them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from proxy.errors import ConfigError
from proxy.net.address import TcpAddress, parse_address
from proxy.net.nft_rules import RuleSet, Side, parse_network
from proxy.net.redirection import PortRange

if TYPE_CHECKING:
    from collections.abc import Iterator

DESTINATION, SOURCE, GATEWAY = Side.DESTINATION, Side.SOURCE, Side.GATEWAY


def at(*texts: str) -> tuple[TcpAddress, ...]:
    def parsed() -> Iterator[TcpAddress]:
        for text in texts:
            address = parse_address(text)
            assert isinstance(address, TcpAddress)
            yield address

    return tuple(parsed())


def statements(rules: RuleSet) -> list[str]:
    """Return what stands in the chain, without comments."""
    lines = [line.strip() for line in rules.lines()]
    return [line for line in lines if line.startswith(("type", "meta", "tcp"))]


def test_on_the_destination_its_own_addresses_are_redirected() -> None:
    assert statements(RuleSet(DESTINATION, at("tcp:0.0.0.0:4444", "tcp:[::]:4445"))) == [
        "type nat hook prerouting priority dstnat; policy accept;",
        "meta mark 0x766d7072 return",
        "meta nfproto ipv4 fib daddr type local tcp dport 49152-49215 redirect to :4444",
        "meta nfproto ipv6 fib daddr type local tcp dport 49152-49215 redirect to :4445",
    ]


def test_on_the_source_others_addresses_are_redirected() -> None:
    peers = (parse_network("10.0.0.7"), parse_network("10.0.0.8/31"))
    rules = RuleSet(SOURCE, at("tcp::4444", "tcp:[::1]:4444"), PortRange(5000, 5000), 7, peers)
    assert statements(rules) == [
        "type nat hook output priority -100; policy accept;",
        "meta mark 0x7 return",
        "meta nfproto ipv4 fib daddr type != local ip daddr { 10.0.0.7/32, 10.0.0.8/31 } tcp dport 5000 "
        "redirect to :4444",
    ]


def test_an_address_of_the_host_s_own_is_where_they_go() -> None:
    *_, four, six = statements(RuleSet(DESTINATION, at("tcp:10.0.0.2:4444", "tcp:[fd00::2]:4444")))
    assert four.endswith(" dnat ip to 10.0.0.2:4444")
    assert six.endswith(" dnat ip6 to [fd00::2]:4444")


def test_what_a_host_sends_to_itself_is_meant_where_that_is_asked_for() -> None:
    *_, rule = statements(RuleSet(SOURCE, at("tcp:127.0.0.1:4444"), local=True))
    assert rule == "meta nfproto ipv4 tcp dport 49152-49215 redirect to :4444"


def test_a_port_of_the_destinations_may_be_listened_on_at_one_address() -> None:
    *_, rule = statements(RuleSet(SOURCE, at("tcp:127.0.0.9:49200")))
    assert rule.endswith("fib daddr type != local tcp dport 49152-49215 dnat ip to 127.0.0.9:49200")
    *_, rule = statements(RuleSet(DESTINATION, at("tcp:10.0.0.7:49200")))
    assert rule.endswith("dnat ip to 10.0.0.7:49200")


def test_tproxy_takes_first_packets_only() -> None:
    *_, four, six = statements(RuleSet(DESTINATION, at("tcp:127.0.0.1:4444", "tcp:[::]:4444"), tproxy=True))
    syn = "tcp flags & (fin | syn | rst | ack) == syn"
    assert four.endswith(f"tcp dport 49152-49215 {syn} tproxy ip to 127.0.0.1:4444 accept")
    assert six.endswith(f"tcp dport 49152-49215 {syn} tproxy ip6 to :4444 accept")


def test_a_gateway_with_tproxy_needs_routes() -> None:
    rules = RuleSet(GATEWAY, at("tcp:127.0.0.1:4444"), tproxy=True)
    assert "#     ip rule add fwmark 0x766d7073 lookup 4444" in list(rules.lines())
    assert "tcp dport 49152-49215 socket transparent 1 meta mark set 0x766d7073 accept" in statements(rules)
    assert statements(rules)[-1].endswith("meta mark set 0x766d7073 accept")


@pytest.mark.parametrize("extra", [{}, {"ports": PortRange(1000, 2000), "mark": 7}])
def test_the_comment_says_how_to_run_the_proxy(extra: dict[str, object]) -> None:
    [line] = [line for line in RuleSet(SOURCE, at("tcp::4444"), **extra).lines() if "--transparent" in line]  # type: ignore[arg-type]
    options = " --ports 1000-2000 --mark 0x7" if extra else ""
    assert line == f"#     vmstate-proxy run --transparent --listen tcp::4444{options} ..."


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (RuleSet(SOURCE, at("tcp::4444"), tproxy=True), "--tproxy: the kernel has it for what comes in"),
        (RuleSet(SOURCE, at("tcp:10.0.0.1:4444")), "redirected to the loopback"),
        (RuleSet(DESTINATION, at("tcp::4444")), "not redirected to the loopback"),
        (RuleSet(GATEWAY, at("tcp:[::1]:4444")), "not redirected to the loopback"),
        (RuleSet(DESTINATION, at("tcp:0.0.0.0:0")), "give the port"),
        (RuleSet(DESTINATION, at("tcp:0.0.0.0:49200")), "take another"),
        (RuleSet(DESTINATION, at("tcp:localhost:4444")), "need a number"),
        (RuleSet(DESTINATION, at("tcp:0.0.0.0:4444"), local=True), "--local: .*with --source"),
    ],
)
def test_rules_that_lead_nowhere_are_refused(rules: RuleSet, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        list(rules.lines())


@pytest.mark.parametrize("text", ["", "rack7", "10.0.0.0/33", "10.0.0.1/24"])
def test_a_network_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="network"):
        parse_network(text)
