"""What the walk through a precopy migration finds: the last window that is known, and nothing else."""

from __future__ import annotations

import pytest

from tests.model.explorer import explore
from tests.model.precopy import Precopy


def test_without_a_fault_one_guest_is_left() -> None:
    walk = explore(Precopy(most_faults=0))
    assert not walk.wrong, walk
    assert walk.states > 8


@pytest.mark.parametrize("faults", [1, 2, 3])
def test_only_the_last_window_is_found(faults: int) -> None:
    """It opens when the device state is passed on, and closes when SHUT comes to the source."""
    walk = explore(Precopy(most_faults=faults))
    assert walk.wrong.keys() == {"two guests run"}, walk
    assert all(state.released_first for state in walk.all_wrong["two guests run"])
    way = walk.wrong["two guests run"]
    fault = next(number for number, step in enumerate(way) if step.startswith("FAULT"))
    assert way.index("proxy: judges it, and passes it on") < fault
    assert "source: hears SHUT 0, and has completed" not in way


@pytest.mark.parametrize("faults", [1, 2, 3])
def test_a_coordinator_closes_it(faults: int) -> None:
    walk = explore(Precopy(most_faults=faults, coordinated=True))
    assert not walk.wrong, walk


def test_without_a_return_path_a_guest_can_be_lost() -> None:
    """Which is why the proxy wants one."""
    walk = explore(Precopy(most_faults=0, return_path=False))
    assert walk.wrong.keys() == {"no guest is left"}
    assert "proxy: judges it, and refuses it" in walk.wrong["no guest is left"]
    walk = explore(Precopy(most_faults=1, return_path=False, refuses=False))
    assert "no guest is left" in walk.wrong


@pytest.mark.parametrize(
    ("mistake", "finds"),
    [
        ("says SHUT before the destination did", "no guest is left"),
        ("says SHUT when the destination broke", "no guest is left"),
        ("passes on what it refuses", "two guests run"),
    ],
)
def test_mistakes_that_a_proxy_could_make_are_found(mistake: str, finds: str) -> None:
    walk = explore(Precopy(most_faults=1, mistake=mistake))
    assert finds in walk.wrong
    if finds == "two guests run":
        assert any(not state.faults for state in walk.all_wrong[finds])
