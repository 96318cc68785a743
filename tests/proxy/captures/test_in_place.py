"""Changes of a file, and the note by which what broke off is finished."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.captures.in_place import Change, Patch, check_unchanged, patch_of
from proxy.captures.places import InOneRun
from proxy.captures.unfinished import finish, note_of, noted
from proxy.errors import ConfigError, ProxyError
from proxy.judged_state import Replacement

if TYPE_CHECKING:
    from pathlib import Path

OLD = bytes(range(256)) * 8


def as_new(patch: Patch, old: bytes) -> bytes:
    """Return a file's bytes when the patch is made."""
    new = bytearray(old)
    for one in patch.changes:
        new[one.position : one.position + len(one.before)] = one.after
    return bytes(new)


def shortened() -> tuple[Patch, bytes]:
    """Return a patch that changes some bytes and shortens the end, and what it makes of `OLD`."""
    new = OLD[:100] + b"\0\0" + OLD[102:1500] + b"ENDE" + OLD[1700:]
    judged = [Replacement(50, OLD[50:1000], new[50:1000]), Replacement(1000, OLD[1000:], new[1000:])]
    patch = patch_of(judged, InOneRun(0), 2048, 2048)
    return patch, new


# --- what changes


@settings(deadline=None)
@given(data=st.data(), start=st.integers(0, 40))
def test_the_changes_make_the_one_out_of_the_other(data: st.DataObject, start: int) -> None:
    before = data.draw(st.binary(max_size=200))
    after = bytearray(before)
    for at in data.draw(st.lists(st.integers(0, len(before) - 1), max_size=20) if before else st.just([])):
        after[at] ^= 0xFF
    patch = patch_of([Replacement(3, before, bytes(after))], InOneRun(start), 500, 1000)
    old = bytes(start + 3) + before + bytes(1000 - start - 3 - len(before))
    assert as_new(patch, old) == old[: start + 3] + bytes(after) + old[start + 3 + len(after) :]
    assert patch.size == 1000
    for one in patch.changes:
        assert one.before[0] != one.after[0]
        assert one.before[-1] != one.after[-1]
    for one, next_one in zip(patch.changes, patch.changes[1:], strict=False):
        assert next_one.position - one.position - len(one.before) >= 15


def test_nothing_changes() -> None:
    assert patch_of([Replacement(0, OLD, OLD)], InOneRun(0), len(OLD), len(OLD)) == Patch((), len(OLD), len(OLD))
    assert patch_of([], InOneRun(0), 5, 5) == Patch((), 5, 5)


def test_no_register_is_cut_in_two() -> None:
    """Bytes of one value that are equal before and after do not make two changes of it."""
    before, after = bytes(40), bytes(8) + b"\1\0\0\0\0\0\0\1" + bytes(24)
    assert patch_of([Replacement(0, before, after)], InOneRun(0), 40, 40).changes == (Change(8, bytes(8), after[8:16]),)


def test_the_end_becomes_shorter() -> None:
    patch, new = shortened()
    assert as_new(patch, OLD) == new
    assert patch.size == len(new) == 2048 - 196
    assert patch.changes[0] == Change(100, OLD[100:102], b"\0\0")


def test_only_the_end_of_the_stream_can_become_shorter() -> None:
    with pytest.raises(ProxyError, match="have to be left out"):
        patch_of([Replacement(0, OLD, OLD[:-1])], InOneRun(0), len(OLD) + 1, len(OLD) + 1)


@pytest.mark.parametrize("rest", [b"what follows", b""])
def test_what_follows_the_stream_keeps_its_place(rest: bytes) -> None:
    """As it does on a block device, which cannot become shorter either."""
    old = b"HEAD" + OLD + rest
    judged = [Replacement(0, OLD, OLD[:100] + b"??" + OLD[102:-9])]
    patch = patch_of(judged, InOneRun(4), len(OLD), len(old), may_shrink=bool(rest))
    assert patch.size == patch.old_size == len(old)
    assert as_new(patch, old) == b"HEAD" + OLD[:100] + b"??" + OLD[102:-9] + bytes(9) + rest


def test_a_file_that_someone_else_changed(tmp_path: Path) -> None:
    judged = [Replacement(40, OLD[50:90], b"")]
    (tmp_path / "file").write_bytes(OLD)
    with (tmp_path / "file").open("rb") as file:
        check_unchanged(file.fileno(), judged, InOneRun(10))
    (tmp_path / "file").write_bytes(OLD[:89] + b"?" + OLD[90:])
    with (tmp_path / "file").open("rb") as file, pytest.raises(ProxyError, match="changed by someone else"):
        check_unchanged(file.fileno(), judged, InOneRun(10))


# --- what broke off


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_part_that_reached_the_disk_is_finished(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever bytes are already the new ones, and whether or not the file was cut already."""
    patch, new = shortened()
    now = bytearray(OLD)
    for one in patch.changes:
        for at in data.draw(st.sets(st.integers(0, len(one.after) - 1))):
            now[one.position + at] = one.after[at]
    if data.draw(st.booleans()):
        del now[patch.size :]
    path = tmp_path / "file"
    path.write_bytes(now)
    with pytest.raises(ZeroDivisionError), noted(str(path), patch):
        raise ZeroDivisionError
    with path.open("r+b") as file:
        assert finish(str(path), file.fileno())
        assert path.read_bytes() == new
        assert not os.path.exists(note_of(str(path)))
        assert not finish(str(path), file.fileno())


def test_done_there_is_no_note(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    patch, new = shortened()
    with path.open("r+b") as file, noted(str(path), patch):
        assert sorted(os.listdir(tmp_path)) == ["file", "file.unfinished"]
        assert (os.stat(note_of(str(path))).st_mode & 0o777) == 0o600, "it holds a part of the guest"
        patch.write(file.fileno())
    assert path.read_bytes() == new
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("other", [OLD[:99] + b"\xee\xee\xee" + OLD[102:], OLD[:1900], OLD + b"x", b""])
def test_a_note_of_another_file(tmp_path: Path, other: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    with pytest.raises(ZeroDivisionError), noted(str(path), shortened()[0]):
        raise ZeroDivisionError
    path.write_bytes(other)
    with path.open("r+b") as file, pytest.raises(ConfigError, match="of another file"):
        finish(str(path), file.fileno())
    assert path.read_bytes() == other


@pytest.mark.parametrize("note", [b"", b"{}", b"[]", b'{"size": 1, "changes": [{}]}', b"\xff", b'{"changes": 7}'])
def test_a_broken_note(tmp_path: Path, note: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    (tmp_path / "file.unfinished").write_bytes(note)
    with path.open("r+b") as file, pytest.raises(ConfigError, match=r"file\.unfinished: it cannot be read"):
        finish(str(path), file.fileno())
    assert path.read_bytes() == OLD


def test_without_a_note_nothing_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    folder = tmp_path / "nowhere"
    with pytest.raises(OSError, match="No such file"), noted(str(folder / "file"), shortened()[0]):
        path.write_bytes(b"")
    assert path.read_bytes() == OLD
