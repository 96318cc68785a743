"""Build Debian packages of vmstate-proxy: for a suite and an architecture each, on any machine that has dpkg-deb.

The package has the program and the modules that it needs in a folder of its own, /usr/lib/vmstate-proxy: Debian's are
too old for it. Modules with machine code belong to one version of Python, so there is a package for each suite.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
OPS = ROOT / "ops"

PYTHONS = {"bookworm": ("3.11", "deb12"), "trixie": ("3.13", "deb13")}
"""The suites, their versions of Python, and what their packages' versions end with."""

GLIBCS = {"bookworm": 36, "trixie": 41}
"""The suites' versions of glibc are 2.N: wheels for older ones do."""

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}

LAUNCHER = """\
#!/usr/bin/python3 -I
import sys

sys.path.insert(0, "/usr/lib/vmstate-proxy")
from proxy.cli import main

main()
"""

CONTROL = """\
Package: vmstate-proxy
Version: {version}
Architecture: {architecture}
Maintainer: vmstate-proxy <vmstate-proxy@localhost>
Section: admin
Priority: optional
Depends: python3 (>= {python}), python3 (<< {next_python})
Recommends: nftables
Enhances: libvirt-daemon-system, qemu-system-arm
Description: repairs live migrations between arm64 hosts whose processors differ
 A proxy between two QEMUs that gives the invariant registers of a migrated
 arm64 guest the destination's values where a policy vouches for it, and passes
 every other byte on untouched.
"""

CONFFILES = ("/etc/vmstate-proxy/config.toml", "/etc/vmstate-proxy/policy.toml", "/etc/apparmor.d/vmstate-proxy")


def run(*command: str | Path) -> str:
    """Run a command, and return what it prints."""
    return subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True).stdout


def build(suite: str, architecture: str, out: Path) -> Path:
    """Build the package for one suite and architecture; return its path."""
    python, release = PYTHONS[suite]
    with tempfile.TemporaryDirectory(prefix="vmstate-proxy-deb-") as folder:
        tree, wheels = Path(folder) / "tree", Path(folder) / "wheels"
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, ROOT)
        (wheel,) = wheels.glob("*.whl")
        version = wheel.name.split("-")[1]
        _install(wheel, tree / "usr/lib/vmstate-proxy", python, suite, architecture)
        _put_files(tree)
        _put_pages(tree)
        _put_control(tree, f"{version}-1~{release}", architecture, python)
        out.mkdir(exist_ok=True)
        package = out / f"vmstate-proxy_{version}-1~{release}_{architecture}.deb"
        run("dpkg-deb", "--root-owner-group", "-Zxz", "--build", tree, package)
    return package


def _install(wheel: Path, target: Path, python: str, suite: str, architecture: str) -> None:
    """Install the program and all that it needs, for a machine that may be another than this one."""
    glibcs = [f"manylinux_2_{minor}_{MACHINES[architecture]}" for minor in range(17, GLIBCS[suite] + 1)]
    platforms = [f"--platform={name}" for name in (*glibcs, f"manylinux2014_{MACHINES[architecture]}")]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary=:all:", "--upgrade"]
    run(*pip, "--implementation=cp", f"--python-version={python}", *platforms, "--target", target, wheel)
    shutil.rmtree(target / "bin", ignore_errors=True)


def _put_files(tree: Path) -> None:
    for source, target, mode in (
        ("systemd/vmstate-proxy.service", "usr/lib/systemd/system/vmstate-proxy.service", 0o644),
        ("systemd/vmstate-proxy-rules.service", "usr/lib/systemd/system/vmstate-proxy-rules.service", 0o644),
        ("systemd/look-at-qemu.conf", "usr/share/doc/vmstate-proxy/examples/look-at-qemu.conf", 0o644),
        ("prometheus/alerts.yml", "usr/share/doc/vmstate-proxy/examples/alerts.yml", 0o644),
        ("grafana/vmstate-proxy.json", "usr/share/doc/vmstate-proxy/examples/grafana.json", 0o644),
        ("apparmor/vmstate-proxy", "etc/apparmor.d/vmstate-proxy", 0o644),
        ("debian/config.toml", "etc/vmstate-proxy/config.toml", 0o644),
        ("../proxy/policy/policy_example.toml", "etc/vmstate-proxy/policy.toml", 0o644),
        ("../LICENSE", "usr/share/doc/vmstate-proxy/copyright", 0o644),
    ):
        _put(tree / target, (OPS / source).read_bytes(), mode)
    _put(tree / "usr/bin/vmstate-proxy", LAUNCHER.encode(), 0o755)
    changes = (ROOT / "CHANGELOG.md").read_bytes()
    _put(tree / "usr/share/doc/vmstate-proxy/changelog.gz", gzip.compress(changes, mtime=0), 0o644)


def _put_pages(tree: Path) -> None:
    """Put manual pages and completion, which this machine's copy of the program writes."""
    pages = tree / "usr/share/man/man1"
    run(sys.executable, "-m", "proxy", "manual", pages)
    for page in pages.iterdir():
        _put(page.with_name(f"{page.name}.gz"), gzip.compress(page.read_bytes(), mtime=0), 0o644)
        page.unlink()
    for shell, target in (
        ("bash", "usr/share/bash-completion/completions/vmstate-proxy"),
        ("zsh", "usr/share/zsh/vendor-completions/_vmstate-proxy"),
        ("fish", "usr/share/fish/vendor_completions.d/vmstate-proxy.fish"),
    ):
        _put(tree / target, run(sys.executable, "-m", "proxy", "completion", shell).encode(), 0o644)


def _put_control(tree: Path, version: str, architecture: str, python: str) -> None:
    major, minor = python.split(".")
    following = f"{major}.{int(minor) + 1}"
    control = CONTROL.format(version=version, architecture=architecture, python=python, next_python=following)
    _put(tree / "DEBIAN/control", control.encode(), 0o644)
    _put(tree / "DEBIAN/conffiles", "".join(f"{path}\n" for path in CONFFILES).encode(), 0o644)
    for name in ("postinst", "prerm", "postrm"):
        _put(tree / "DEBIAN" / name, (OPS / "debian" / name).read_bytes(), 0o755)


def _put(path: Path, content: bytes, mode: int) -> None:
    for folder in reversed(path.parents):
        if not folder.exists():
            folder.mkdir(mode=0o755)
    path.write_bytes(content)
    path.chmod(mode)


def main() -> None:
    """Build what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=PYTHONS, action="append", help="default: all")
    parser.add_argument("--architecture", choices=MACHINES, action="append", help="default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="default: dist")
    given = parser.parse_args()
    for suite in given.suite or PYTHONS:
        for architecture in given.architecture or MACHINES:
            print(build(suite, architecture, given.out))


if __name__ == "__main__":
    main()
