"""Packages for the lab's images: those of today, and no others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.lab.debian import download_packages

if TYPE_CHECKING:
    from pathlib import Path


def test_a_package_that_is_no_longer_needed_is_not_returned(tmp_path: Path) -> None:
    """As a kernel's image of another version, which has another name, and which the mirror may still have."""
    archives = tmp_path / "archives"
    archives.mkdir()
    older = archives / "linux-image-6.1.0-1-arm64_6.1.4-1_arm64.deb"
    older.write_bytes(b"")
    [package] = download_packages("bookworm", ["busybox-static"], tmp_path)
    assert package.name.startswith("busybox-static_")
    assert sorted(archives.glob("*.deb")) == [package]
    # What is there already is still wanted.
    assert download_packages("bookworm", ["busybox-static"], tmp_path) == [package]
