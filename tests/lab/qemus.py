"""QEMUs of other Debian releases, for this machine: no root, nothing installed, no change to its own packages.

A release's packages are unpacked into the cache folder, and run with their own loader, libraries and firmware. They see
this machine's files and share its descriptors, so that `running_vm` starts them as it starts the installed one.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.cache import cache_folder, locked, remove_older
from tests.lab.debian import ImageError, download_packages, own_architecture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

QEMUS = {"bullseye": "5.2", "bookworm": "7.2", "trixie": "10.0", "sid": "11.1"}
"""Debian releases, and the QEMU that each had when this was written; sid's goes on. Ask `qemu_version` for today's."""

_HERE = Path(__file__).parent
_PACKAGES = ("qemu-system-arm", "qemu-system-x86")
_BINARIES = ("qemu-system-aarch64", "qemu-system-x86_64")
_FOLDERS = ("lib", "usr/lib")
_NOT_NEEDED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/icons", "var", "etc")
# exec, so that signals and the descriptors that it inherits reach QEMU itself.
_STARTER = """\
#!/bin/sh
export QEMU_MODULE_DIR={modules}
exec {loader} --library-path {libraries} {program} -L {firmware} "$@"
"""


def other_qemu(suite: str, binary: str, tell: Callable[[str], None] = lambda _: None) -> str:
    """Return the path of a release's QEMU, which is downloaded first if it is not in the cache.

    Args:
        suite: one of QEMUS.
        binary: "qemu-system-aarch64" or "qemu-system-x86_64".
        tell: gets a line for each step of building.

    Raises:
        ImageError: unknown suite, or a tool, the mirror, the network or a package is missing.
    """
    if suite not in QEMUS:
        raise ImageError(f"unknown suite {suite!r}; there are {', '.join(QEMUS)}")
    cache = cache_folder()
    name = f"qemu-{suite}"
    folder = cache / f"{name}-{_recipe_version()}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / f"{name}.lock"):
            if not folder.exists():
                with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-") as scratch:
                    _build(suite, Path(scratch), folder, tell)
                remove_older(cache, name, folder)
    return str(folder / binary)


def qemu_version(suite: str) -> str:
    """Return the version of a release's QEMU, such as "10.0.13".

    Raises:
        ImageError: as for `other_qemu`.
    """
    return _version(other_qemu(suite, _BINARIES[0]))


def _build(suite: str, scratch: Path, folder: Path, tell: Callable[[str], None]) -> None:
    tell(f"{suite}: downloading {', '.join(_PACKAGES)}")
    try:
        packages = download_packages(suite, _PACKAGES, scratch, own_architecture())
    except ImageError as error:
        raise ImageError(
            f"{error}\nNo QEMU of Debian {suite} can be had. If the mirror has dropped this release, name one that "
            "still has it in VMSTATE_PROXY_LAB_MIRROR (a URL)"
        ) from error
    megabytes = sum(package.stat().st_size for package in packages) >> 20
    tell(f"{suite}: unpacking {len(packages)} packages of {megabytes} MiB")
    built = scratch / "built"
    built.mkdir()
    _unpack(packages, built / "root")
    for binary in _BINARIES:
        starter = built / binary
        starter.write_text(_starter(built / "root", folder / "root", binary))
        starter.chmod(0o755)
    built.rename(folder)  # there in whole, or not at all
    try:
        tell(f"{suite}: QEMU {_version(str(folder / _BINARIES[0]))} in {folder}")
    except ImageError:
        shutil.rmtree(folder)
        raise


def _unpack(packages: Iterable[Path], root: Path) -> None:
    for package in packages:
        result = subprocess.run(["dpkg-deb", "-x", package, root], capture_output=True, text=True, check=False)
        if result.returncode:
            raise ImageError(f"{package.name}: {result.stderr.strip()}")
    for path in _NOT_NEEDED:
        shutil.rmtree(root / path, ignore_errors=True)


def _starter(root: Path, final: Path, binary: str) -> str:
    """Return the script that runs a binary of `root`, which is going to be moved to `final`."""
    # Not those of lib64/: these lead to an absolute path, and so out of the tree.
    loaders = [path for folder in _FOLDERS for path in root.glob(f"{folder}/*/ld-linux*.so.*")]
    if not loaders:
        raise ImageError(f"no loader in the packages of {binary}")
    triplet = loaders[0].parent.name
    libraries = ":".join(str(final / folder / triplet) for folder in _FOLDERS)
    return _STARTER.format(
        loader=shlex.quote(str(final / loaders[0].relative_to(root))),
        libraries=shlex.quote(libraries),
        modules=shlex.quote(str(final / "usr/lib" / triplet / "qemu")),
        program=shlex.quote(str(final / "usr/bin" / binary)),
        firmware=shlex.quote(str(final / "usr/share/qemu")),
    )


def _version(program: str) -> str:
    result = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    words = result.stdout.split()  # QEMU emulator version 10.0.13 (Debian ...)
    if result.returncode or len(words) < 4:
        raise ImageError(f"{program} does not run here: {result.stderr.strip()}")
    return words[3]


def _recipe_version() -> str:
    return hashlib.sha256((_HERE / "qemus.py").read_bytes()).hexdigest()[:12]
