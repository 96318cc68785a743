"""Copies with holes, with and without the kernel's help."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from proxy.captures.sparse_copy import copy_sparse

if TYPE_CHECKING:
    from pathlib import Path

KIB = 1 << 10
LAYOUTS: dict[str, tuple[int, dict[int, bytes]]] = {
    "empty": (0, {}),
    "a byte": (1, {0: b"x"}),
    "one hole": (1 << 30, {}),
    "a hole first": ((1 << 20) + 5, {1 << 20: b"tail!"}),
    "a hole last": (1 << 20, {0: b"head"}),
    "holes between": (
        (3 << 20) + 70 * KIB,
        {0: os.urandom(300 * KIB), 1 << 20: os.urandom(64 * KIB), 3 << 20: os.urandom(70 * KIB)},
    ),
    "no hole": (3 << 20, {0: os.urandom(3 << 20)}),
}


def refusing(number: int) -> object:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("refusal", [None, errno.EXDEV, errno.EOPNOTSUPP], ids=["", "EXDEV", "EOPNOTSUPP"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, refusal: int | None) -> None:
    size, pieces = LAYOUTS[layout]
    if refusal is not None:
        monkeypatch.setattr(os, "copy_file_range", refusing(refusal))
    with (tmp_path / "in").open("w+b") as source, (tmp_path / "out").open("w+b") as target:
        source.truncate(size)
        for position, data in pieces.items():
            os.pwrite(source.fileno(), data, position)
        copy_sparse(source.fileno(), target.fileno())
        one, other = os.fstat(source.fileno()), os.fstat(target.fileno())
        assert one.st_size == other.st_size == size
        assert other.st_blocks <= one.st_blocks + 8  # a block with the file's map, or not
        for position, data in pieces.items():
            assert os.pread(target.fileno(), len(data), position) == data
        if size <= 16 << 20:
            assert (tmp_path / "in").read_bytes() == (tmp_path / "out").read_bytes()


def test_a_file_system_without_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(1 << 20) + b"x"
    (tmp_path / "in").write_bytes(content)
    monkeypatch.setattr(os, "lseek", refusing(errno.EINVAL))
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("w+b") as target:
        copy_sparse(source.fileno(), target.fileno())
    assert (tmp_path / "out").read_bytes() == content


@pytest.mark.parametrize("call", ["copy_file_range", "lseek"])
def test_other_errors_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    (tmp_path / "in").write_bytes(b"x")
    monkeypatch.setattr(os, call, refusing(errno.EIO))
    with (
        (tmp_path / "in").open("rb") as source,
        (tmp_path / "out").open("w+b") as target,
        pytest.raises(OSError, match="Input/output"),
    ):
        copy_sparse(source.fileno(), target.fileno())


def test_a_file_that_becomes_shorter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").write_bytes(b"x" * 100)
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    with (
        (tmp_path / "in").open("rb") as source,
        (tmp_path / "out").open("w+b") as target,
        pytest.raises(OSError, match="became shorter"),
    ):
        copy_sparse(source.fileno(), target.fileno())
