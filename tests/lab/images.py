"""Images of arm64 hosts: a Debian kernel, and a file system in RAM with QEMU, busybox, Python and the lab's agent.

They are built once, without root, into a cache folder outside the tree, and built anew when the recipe changes.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.cache import cache_folder, locked, remove_older
from tests.lab.cpio import Entry, Executable, File, Symlink, write_cpio
from tests.lab.debian import ImageError, download_packages
from tests.lab.packages import read_packages, resolve, with_dependencies

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SUITES = {
    "bullseye": "Linux 5.10, QEMU 5.2",
    "bookworm": "Linux 6.1, QEMU 7.2",
    "trixie": "Linux 6.12, QEMU 10.0",
    "sid": "Linux 7.2, QEMU 11.1",
}
"""Debian releases that hosts run, and what that brought when this was written; sid goes on."""

MACHINES = {"bullseye": "virt-5.2,gic-version=3"}
"""The machine types of guests on hosts whose QEMU does not know the usual one, virt-7.2."""

_HERE = Path(__file__).parent
_RECIPE = ("images.py", "packages.py", "cpio.py", "elf.py", "agent.py")
_PACKAGES = ("qemu-system-arm", "linux-image-arm64", "busybox-static", "python3")
_LOADER = "usr/lib/ld-linux-aarch64.so.1"
_PROGRAMS = ("usr/bin/qemu-system-aarch64", "usr/bin/python3")
_LIBRARIES = ("usr/lib/aarch64-linux-gnu/libpthread.so.0",)
"""What wheels for older C libraries are linked with, and nothing else in a host is."""
_PYTHON = re.compile(r"usr/lib/python3\.\d+/")
# Big, and of no use in a host: what needs libraries of its own, what is for people, and what installs packages.
_NOT_OF_PYTHON = re.compile(
    r"/(pydoc_data|idlelib|lib2to3|ensurepip|unittest|distutils|turtledemo|test|xmlrpc|tkinter|venv)/"
    r"|/(_hashlib|_sqlite3|_curses\w*|_tkinter|_dbm|_gdbm|_codecs_\w+|readline)\."
)
_MODULE = re.compile(r"usr/lib/modules/[^/]+/kernel/.*/([^/]+)\.ko(\.xz)?")
_KERNEL = re.compile(r"boot/vmlinuz-\S+|usr/lib/modules/[^/]+/vmlinuz")
_NEEDED_MODULES = ("virtio_pci", "virtio_net")
_LEFT_OUT = re.compile(r"usr/share/")
_WANTED_MODULE = re.compile(
    r"/kernel/(drivers/(virtio|net)/[^/]+|net/core/[^/]+|net/(ipv4/|ipv6/)?netfilter/[^/]+|(lib|crypto)/[^/]+)$"
)
_IMAGE_MAGIC = b"ARM\x64"  # at 56: Linux, Documentation/arch/arm64/booting.rst
# The loopback of the machine around is 10.0.2.2 (QEMU's user networking).
_INIT = """\
#!/usr/bin/busybox sh
export PATH=/usr/sbin:/usr/bin HOME=/ TERM=vt100
/usr/bin/busybox mkdir -p /proc /sys /dev /tmp /run
/usr/bin/busybox mount -t proc proc /proc
/usr/bin/busybox --install -s /usr/bin  # asks /proc for its own path
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
for module in {modules}; do insmod /modules/$module.ko; done
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
hostname {suite}
[ -e /dev/kvm ] || echo "vmstate-lab: there is no /dev/kvm"
exec python3 -S -E -s /agent.py
"""


@dataclass(frozen=True, slots=True)
class Kit:
    """What some hosts have beside QEMU and Python.

    Attributes:
        name: names its images.
        packages: Debian packages that it comes in.
        programs: paths of programs, and of libraries that are loaded by name; what they are linked with comes along.
        also: files of the packages that come along, too.
        modules: kernel modules.
        files: further files, by path.
    """

    name: str
    packages: tuple[str, ...]
    programs: tuple[str, ...]
    also: re.Pattern[str]
    modules: tuple[str, ...]
    files: Mapping[str, Entry]


NO_KIT = Kit("", (), (), re.compile(r"(?!)"), (), {})


@dataclass(frozen=True, slots=True)
class HostImage:
    """What `-kernel` and `-initrd` take."""

    suite: str
    kernel: Path
    initrd: Path


def host_image(suite: str, tell: Callable[[str], None] = lambda _: None, kit: Kit = NO_KIT) -> HostImage:
    """Return the image of a host, built first if it is not in the cache. Two builders at once do not collide.

    Args:
        suite: one of SUITES.
        tell: gets a line for each step of building.
        kit: what it has beside QEMU and Python.

    Raises:
        ImageError: unknown suite, or a tool, the network or a package is missing.
    """
    if suite not in SUITES:
        raise ImageError(f"unknown suite {suite!r}; there are {', '.join(SUITES)}")
    cache = cache_folder()
    name = f"{suite}-{kit.name}" if kit.name else suite
    folder = cache / f"{name}-{_recipe_version(kit)}"
    image = HostImage(suite, folder / "Image", folder / "initrd.gz")
    if folder.exists():
        return image
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / f"{name}.lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-") as scratch:
                built = Path(scratch) / "image"
                built.mkdir()
                _build(suite, kit, cache / f"{name}-packages", built, tell)
                built.rename(folder)  # there in whole, or not at all
            size = sum(path.stat().st_size for path in folder.iterdir())
            tell(f"{name}: done, {size >> 20} MiB in {folder}")
            remove_older(cache, name, folder)
    return image


def _build(suite: str, kit: Kit, packages: Path, folder: Path, tell: Callable[[str], None]) -> None:
    wanted = (*_PACKAGES, *kit.packages)
    tell(f"{suite}: downloading the arm64 packages of {', '.join(wanted)}")
    debs = download_packages(suite, wanted, packages)
    tell(f"{suite}: reading {len(debs)} packages")
    tree = read_packages(debs, lambda path: _wanted(path) or bool(kit.also.match(path)))
    kernels = [path for path in tree if _KERNEL.fullmatch(path)]
    if len(kernels) > 1:
        raise ImageError(f"{suite}: more than one kernel in the packages: {', '.join(sorted(kernels))}")
    kernel = tree[kernels[0]] if kernels else None
    if not isinstance(kernel, File) or kernel[56:60] != _IMAGE_MAGIC:
        raise ImageError(f"{suite}: no uncompressed arm64 kernel in the packages")
    tell(f"{suite}: packing")
    (folder / "Image").write_bytes(kernel)
    with gzip.open(folder / "initrd.gz", "wb", compresslevel=1) as file:
        write_cpio(file, _root_files(suite, tree, kit))


def _wanted(path: str) -> bool:
    if "/modules/" in path:
        return bool(_KERNEL.fullmatch(path) or _WANTED_MODULE.search(path))
    return not _LEFT_OUT.match(path)


def _root_files(suite: str, tree: Mapping[str, Entry], kit: Kit) -> dict[str, Entry]:
    python = [path for path in tree if _PYTHON.match(path) and not _NOT_OF_PYTHON.search(path)]
    # sitecustomize and the like lead to /etc, which stays empty.
    python = [path for path in python if not isinstance(tree[path], Symlink)]
    also = [path for path in tree if kit.also.match(path)]
    files = with_dependencies(tree, [_LOADER, *_PROGRAMS, *_LIBRARIES, *python, *kit.programs, *also])
    modules = _modules(tree, (*_NEEDED_MODULES, *kit.modules))
    files |= {f"modules/{name}.ko": File(data) for name, data in modules.items()}
    # Another package holds a hook script of that name, elsewhere; this is the program.
    files["usr/bin/busybox"] = Executable(resolve(tree, "usr/bin/busybox"))
    files |= {name: Symlink(f"usr/{name}") for name in ("bin", "sbin", "lib")}
    # A host has one folder for programs.
    files |= {re.sub("^usr/sbin/", "usr/bin/", path): files.pop(path) for path in list(files) if "usr/sbin/" in path}
    files["usr/sbin"] = Symlink("bin")
    files |= kit.files
    files["agent.py"] = File((_HERE / "agent.py").read_bytes())
    files["init"] = Executable(_INIT.format(suite=suite, modules=" ".join(modules)).encode())
    return files


def _modules(tree: Mapping[str, Entry], needed: tuple[str, ...]) -> dict[str, bytes]:
    """Return the kernel modules that a host needs, in the order in which they load."""
    there: dict[str, bytes] = {}
    for path, entry in tree.items():
        if (match := _MODULE.fullmatch(path)) and isinstance(entry, File):
            there[match[1].replace("-", "_")] = lzma.decompress(entry) if match[2] else entry
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        # Of the .modinfo section; what is not there as a module is built into the kernel.
        if name in there and name not in ordered:
            depends = re.search(rb"\0depends=([^\0]*)\0", there[name])
            for other in depends[1].decode().split(",") if depends else ():
                add(other.replace("-", "_"))
            ordered[name] = there[name]

    for name in needed:
        add(name)
    return ordered


def _recipe_version(kit: Kit) -> str:
    """Return a digest of all that decides what an image holds, but for the packages' own versions."""
    digest = hashlib.sha256()
    for name in _RECIPE:
        digest.update((_HERE / name).read_bytes())
    if kit.name:
        digest.update((_HERE / f"{kit.name}_kit.py").read_bytes())
    return digest.hexdigest()[:12]
