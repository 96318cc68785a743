"""migration-test and the QEMUs that it runs, built from Debian's source package.

Debian's own binaries do not have the qtest accelerator.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.cache import cache_folder, locked, remove_older
from tests.lab.debian import ImageError, download_source
from tests.lab.qemus import other_qemu

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SUITE = "trixie"
"""The Debian release whose QEMU it is: 10.0."""

ARCHITECTURES = ("aarch64", "x86_64")

_TEST = "tests/qtest/migration-test"
_RECOVERING = Path("tests/qtest/migration/framework.c")
_BY_UNIX = """uri = g_strdup_printf("unix:%s/migsocket-recover", tmpfs);
    migrate_recover(to, uri);
"""
_BY_TCP = """migrate_recover(to, "tcp:127.0.0.1:0");
    uri = migrate_get_connect_uri(to);
"""
"""Recoveries at a new TCP port, so that they come through the proxy, too."""
_FEATURES = ("tcg", "gnutls", "pixman", "zstd", "fdt=system")
_BUILD_TOOLS = ("meson", "pycotap")
_FIRMWARE = Path("qemu-bundle/usr/local/share/qemu")


@dataclass(frozen=True)
class Built:
    """What was built.

    Attributes:
        folder: Where tests are run.
        test: The test program.
    """

    folder: Path
    test: Path

    def qemu(self, architecture: str) -> Path:
        """Return a QEMU."""
        return self.folder / f"qemu-system-{architecture}"


def build(tell: Callable[[str], None]) -> Built:
    """Build it, if it is not in the cache; a quarter of an hour on two processors.

    Args:
        tell: Gets a line for each step.

    Raises:
        ImageError: A package, a tool or the network is missing, or the compiler failed.
    """
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    name = f"qtest-{SUITE}"
    folder = cache / f"{name}-{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]}"
    made = Built(folder / "build", folder / "build" / _TEST)
    with locked(cache / f"{name}.lock"):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _unpack(folder, tell)
            _compile(folder, tell)
            (folder / "complete").touch()
            remove_older(cache, name, folder)
    return made


def _unpack(folder: Path, tell: Callable[[str], None]) -> None:
    tell(f"downloading QEMU's source package of Debian {SUITE}")
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        packed = download_source(SUITE, "qemu", Path(scratch))
        tell(f"unpacking {packed.name}")
        unpacked = Path(scratch) / "unpacked"
        with tarfile.open(packed) as archive:
            archive.extractall(unpacked, filter="tar")
        [top] = unpacked.iterdir()
        top.rename(folder)
    recovering = (folder / _RECOVERING).read_text()
    if recovering.count(_BY_UNIX) != 1:
        raise ImageError(f"{_RECOVERING} of {packed.name} does not recover over a unix socket as QEMU 10.0's does")
    (folder / _RECOVERING).write_text(recovering.replace(_BY_UNIX, _BY_TCP))
    # Debian's source has no firmware to build from; its binaries come from the packages.
    (folder / "pc-bios" / "meson.build").write_text("roms = []\n")
    wanted = tomllib.loads((folder / "pythondeps.toml").read_text())["meson"]
    wheels = [f"{tool}=={wanted[tool]['installed']}" for tool in _BUILD_TOOLS]
    _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", "python/wheels", *wheels], folder)


def _compile(folder: Path, tell: Callable[[str], None]) -> None:
    build_folder = folder / "build"
    build_folder.mkdir()
    targets = ",".join(f"{name}-softmmu" for name in ARCHITECTURES)
    features = [f"--enable-{name}" for name in _FEATURES]
    tell("configuring")
    _run(["../configure", f"--target-list={targets}", "--without-default-features", *features], build_folder)
    tell("compiling; this takes a while")
    _run(["ninja", _TEST, *(f"qemu-system-{name}" for name in ARCHITECTURES)], build_folder)
    share = Path(other_qemu(SUITE, "qemu-system-x86_64", tell)).parent / "root" / "usr" / "share"
    for found in (*(share / "qemu").glob("*.[br][io][nm]"), *(share / "seabios").glob("*.bin")):
        shutil.copy(found, build_folder / _FIRMWARE / found.name)


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise ImageError(f"{command[0]} failed:\n{said}")
