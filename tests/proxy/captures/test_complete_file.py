"""A file takes its name when it is complete, and not before."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from proxy.captures.complete_file import complete_file
from proxy.errors import ProxyError

CONTENT = b"QEVM" + os.urandom(100_000)


def test_an_output_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with complete_file(str(path)) as file:
        file.write(CONTENT)
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["out"]


def write_and_fail(path: Path, error: BaseException) -> None:
    with complete_file(str(path)) as file:
        file.write(CONTENT)
        raise error


@pytest.mark.parametrize("error", [ValueError("x"), ProxyError("x"), OSError(5, "x"), KeyboardInterrupt()])
def test_a_failed_output_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "out"
    with pytest.raises((type(error), ProxyError)):
        write_and_fail(path, error)
    assert os.listdir(tmp_path) == []


def test_a_failed_output_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"before")
    path.chmod(0o600)
    with pytest.raises(ValueError, match="x"):
        write_and_fail(path, ValueError("x"))
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["out"]
    with complete_file(str(path)) as file:
        file.write(b"after")
    assert path.read_bytes() == b"after"


def test_an_output_is_as_readable_as_any_new_file(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        with complete_file(str(tmp_path / "out")):
            pass
    finally:
        assert os.umask(mask) == 0o027
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


def test_a_relative_name_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with complete_file("out") as file:
        file.write(b"x")
    assert (tmp_path / "out").read_bytes() == b"x"


def test_a_symbolic_link_is_written_through(tmp_path: Path) -> None:
    """As root, /dev/stdout is such a link to a regular file, and must not be replaced."""
    (tmp_path / "links").mkdir()
    link, target = tmp_path / "links" / "link", tmp_path / "target"
    target.write_bytes(b"before")
    link.symlink_to(target)
    with complete_file(str(link)) as file:
        file.write(b"after")
    assert link.is_symlink()
    assert target.read_bytes() == b"after"


def test_links_that_lead_in_a_circle_are_no_output(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(tmp_path / "one")
    with pytest.raises(ProxyError, match="one: "), complete_file(str(tmp_path / "one")):
        pass


def test_a_device_is_not_replaced() -> None:
    with complete_file("/dev/null") as file:
        file.write(CONTENT)
    assert Path("/dev/null").is_char_device()


def test_a_full_device_is_an_error_that_names_it() -> None:
    with pytest.raises(ProxyError, match="/dev/full: No space left"), complete_file("/dev/full") as file:
        file.write(CONTENT)


def test_an_output_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "out"
    with pytest.raises(ProxyError, match="missing/out: No such file"), complete_file(str(missing)):
        pass


def test_a_directory_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(ProxyError, match="Is a directory"), complete_file(str(tmp_path)):
        pass
    assert tmp_path.is_dir()


def test_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with complete_file("-") as file:
        file.write(CONTENT)
    assert capfdbinary.readouterr().out == CONTENT
    assert not sys.stdout.buffer.closed
