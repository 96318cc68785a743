"""Which profile is that of the host that is dialled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from proxy.errors import ConfigError, RefusedError
from proxy.fleet.destinations import Destinations, load_destinations
from proxy.hosts.profile_file import load_profile
from proxy.hosts.profile_text import write_profile
from proxy.policy.policy import Policy

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, name: str, midr: int, addresses: str = "") -> None:
    (folder / name).write_text(f'schema_version = 2\n{addresses}\nregisters.MIDR_EL1 = "{midr:#x}"\n')


@pytest.fixture
def fleet(tmp_path: Path) -> Destinations:
    write(tmp_path, "10.0.0.7.toml", 0x411FD070)
    write(tmp_path, "rack8.toml", 0x411FD080)
    write(tmp_path, "n1.toml", 0x413FD0C1, 'addresses = ["10.0.1.0/24", "fd00::9", "Rack9.example", "10.0.2.1"]')
    write(tmp_path, "one of them.toml", 0x413FD0C2, 'addresses = ["10.0.1.64/26"]')
    (tmp_path / "README").write_text("no profile")
    return load_destinations(tmp_path, Policy(), None)


@pytest.mark.parametrize(
    ("host", "midr"),
    [
        ("10.0.0.7", 0x411FD070),
        ("::ffff:10.0.0.7", 0x411FD070),
        ("rack8", 0x411FD080),
        ("RACK8.", 0x411FD080),
        ("10.0.1.3", 0x413FD0C1),
        ("10.0.1.70", 0x413FD0C2),
        ("fd00:0::9", 0x413FD0C1),
        ("[fd00::9]", 0x413FD0C1),
        ("rack9.example", 0x413FD0C1),
        ("10.0.2.1", 0x413FD0C1),
    ],
)
def test_a_host_has_its_profile(fleet: Destinations, host: str, midr: int) -> None:
    found = fleet.judge_of(host).host
    assert found is not None
    assert found.midr == midr


@pytest.mark.parametrize("host", ["10.0.0.8", "n1", "fd00::8", "rack", ""])
def test_a_host_without_one_is_refused_by_name(fleet: Destinations, host: str) -> None:
    with pytest.raises(RefusedError, match=f"is that of the destination {host}: call it {host}.toml there"):
        fleet.judge_of(host)


def test_others_may_have_a_default(tmp_path: Path) -> None:
    write(tmp_path, "rack7.toml", 0x411FD070)
    default = load_profile(tmp_path / "rack7.toml")
    assert load_destinations(tmp_path, Policy(), default).judge_of("rack8").host == default


@pytest.mark.parametrize(
    ("addresses", "says"),
    [
        ('addresses = ["rack7"]', r"two.toml: rack7 is in .*rack7.toml, too"),
        ('addresses = ["10.0.0.300/24"]', r"addresses: '10.0.0.300/24'"),
        ('addresses = ["10.0.0.7/24"]', r"addresses: '10.0.0.7/24': .* has host bits set"),
        ("addresses = [7]", r"two.toml:2: addresses\[0\]: it has to be a text in quotes"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, addresses: str, says: str) -> None:
    write(tmp_path, "rack7.toml", 0x411FD070)
    write(tmp_path, "two.toml", 0x411FD070, addresses)
    with pytest.raises(ConfigError, match=says):
        load_destinations(tmp_path, Policy(), None)


def test_a_folder_without_profiles(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no profile"):
        load_destinations(tmp_path, Policy(), None)
    with pytest.raises(ConfigError, match="missing: No such file"):
        load_destinations(tmp_path / "missing", Policy(), None)


def test_addresses_stay_in_the_profile(tmp_path: Path) -> None:
    write(tmp_path, "n1.toml", 0x413FD0C1, 'addresses = ["10.0.1.0/24", "rack9"]')
    assert 'addresses = ["10.0.1.0/24", "rack9"]' in write_profile(load_profile(tmp_path / "n1.toml"))


def test_what_was_made_under_another_kernel_or_qemu_is_stale(tmp_path: Path) -> None:
    write(tmp_path, "n1.toml", 0x413FD0C1, 'kernel = "Linux 6.1.0"\nqemu = "7.2.0"')
    profile = load_profile(tmp_path / "n1.toml")
    assert profile.stale("Linux 6.1.0", "7.2.0") is None
    assert profile.stale("Linux 6.1.0", None) is None
    assert profile.stale("Linux 6.12.0", "10.0.1") == (
        "its kernel was Linux 6.1.0, and is Linux 6.12.0 and its QEMU was 7.2.0, and is 10.0.1: make it anew with "
        "'host probe'"
    )
