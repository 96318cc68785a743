"""The times in a report."""

from __future__ import annotations

import time

from proxy.report.times import Times


def test_nothing_is_told_of_what_did_not_come() -> None:
    times = Times()
    times.begin()
    times.let_go()
    assert times.as_dict() == {"ram": None, "held": None, "trial": None, "last_in_to_first_out": None}


def test_a_file_has_none() -> None:
    times = Times()
    times.holds()
    times.let_go()
    assert set(times.as_dict().values()) == {None}


def test_each_phase_has_its_time() -> None:
    times = Times()
    times.begin()
    time.sleep(0.02)
    times.received = time.perf_counter()
    times.holds()
    time.sleep(0.01)
    times.received = time.perf_counter()
    times.holds()  # more of it has come
    with times.trying():
        time.sleep(0.005)
    with times.trying():
        time.sleep(0.005)
    times.let_go()
    assert times.ram is not None
    assert times.held is not None
    assert times.trial is not None
    assert times.last_in_to_first_out is not None
    assert times.ram >= 0.02
    assert times.held >= times.last_in_to_first_out + 0.01
    assert times.last_in_to_first_out >= times.trial >= 0.01


def test_early_device_state_does_not_count_once_more_follows() -> None:
    times = Times()
    times.begin()
    times.received = time.perf_counter()
    times.holds()
    times.let_go()
    early = times.ram
    times.received = time.perf_counter()
    times.holds()
    times.let_go()
    assert early is not None
    assert times.ram is not None
    assert times.ram > early
