"""Copies that the kernel makes: the same as what the rewriter says, however much of it the kernel does."""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING

import pytest

from formats.arm.sysreg import MIDR_EL1
from proxy.captures import kernel_copy
from proxy.captures.rewriting import rewrite_to
from proxy.captures.stream_files import open_stream
from proxy.report.report import Outcome
from proxy.rewriter.rewriter import Rewriter
from tests.proxy.helpers import NEWER, R0, R3, capture, downgrade, downgraded, judge, short, with_value, without_vmdesc

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from proxy.judging.judge import Judge

SWAPPED = "kvm-trixie-a57r0"
COPY = os.copy_file_range


def never(*_: object, **__: object) -> int:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


def in_small_pieces(source: int, target: int, count: int, *, offset_dst: int) -> int:
    return COPY(source, target, min(count, 1000), offset_dst=offset_dst)


def for_a_while() -> Callable[..., int]:
    left = 5

    def copy(source: int, target: int, count: int, *, offset_dst: int) -> int:
        nonlocal left
        left -= 1
        return COPY(source, target, count, offset_dst=offset_dst) if left > 0 else never()

    return copy


def not_mapped(*_: object, **__: object) -> mmap.mmap:
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


class NotPopulated(mmap.mmap):
    """A mapping as of a kernel that does not know MADV_POPULATE_READ."""

    def madvise(self, *_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


@pytest.mark.parametrize("step", [511, 4096, 1 << 20])
@pytest.mark.parametrize(
    "copy", [lambda: COPY, lambda: never, lambda: in_small_pieces, for_a_while], ids=["all", "none", "small", "some"]
)
@pytest.mark.parametrize("mapping", [mmap.mmap, not_mapped, NotPopulated], ids=["mapped", "unmapped", "old kernel"])
@pytest.mark.parametrize(
    ("stream", "the_judge", "expected"),
    [
        (short(NEWER), downgrade(), downgraded(short(NEWER))),
        (capture(NEWER), downgrade(), downgraded(capture(NEWER))),
        (without_vmdesc(short(NEWER)), downgrade(), without_vmdesc(downgraded(short(NEWER)))),
        (short(SWAPPED), judge(R0), with_value(short(SWAPPED), MIDR_EL1, R3)),
    ],
    ids=["left out", "left out, after RAM", "left out, no vmdesc", "swapped"],
)
def test_the_copy(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    copy: Callable[[], Callable[..., int]],
    mapping: Callable[..., mmap.mmap],
    stream: bytes,
    the_judge: Judge,
    expected: bytes,
) -> None:
    monkeypatch.setattr(kernel_copy, "_STEP", step)
    monkeypatch.setattr(os, "copy_file_range", copy())
    monkeypatch.setattr(mmap, "mmap", mapping)
    source, target = tmp_path / "stream", tmp_path / "out"
    source.write_bytes(stream)
    rewriter = Rewriter(the_judge, live=False)
    with open_stream(str(source)) as file:
        rewrite_to(file, str(target), rewriter, lambda _: None)
    assert target.read_bytes() == expected
    assert source.read_bytes() == stream
    assert rewriter.report.outcome is Outcome.REWRITTEN
    assert (rewriter.report.bytes_in, rewriter.report.bytes_out) == (len(stream), len(expected))
