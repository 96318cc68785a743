"""Packages from the Debian mirror that this machine uses, without touching the machine's own apt state.

ImageError (a LabError): what is missing, and what to do about it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.qmp import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MIRROR_VARIABLE = "VMSTATE_PROXY_LAB_MIRROR"
"""Environment variable: URL of a Debian mirror, for machines whose apt sources name none (Ubuntu)."""

_KEYRINGS = tuple(Path("/usr/share/keyrings/debian-archive-keyring").with_suffix(end) for end in (".gpg", ".pgp"))
_RELEASES = frozenset(
    {"oldoldstable", "oldstable", "stable", "testing", "unstable"}
    | {"bullseye", "bookworm", "trixie", "forky", "duke", "sid"}
)
_TARGET_FORMAT = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
# The lists of hooks are cleared so that the machine's own hooks do not run; its proxies and certificates stay.
_CONFIGURATION = """\
#clear APT::Architectures;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::State "{folder}/state";
Dir::State::lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}";
Dir::Cache::archives "{folder}/archives";
Dir::Etc::sourcelist "{folder}/lab.sources";
Dir::Etc::sourceparts "-";
Dir::Etc::preferences "-";
Dir::Etc::preferencesparts "-";
"""
_SOURCES = """\
Types: {types}
URIs: {mirror}
Suites: {suite}
Components: main
Signed-By: {keyring}
"""


class ImageError(LabError):
    """An image of an arm64 host, or a QEMU of another Debian release, cannot be had here."""


def download_packages(suite: str, packages: Sequence[str], folder: Path, architecture: str = "arm64") -> list[Path]:
    """Download packages with all that they depend on, and return the .deb files.

    Args:
        suite: Debian release, such as "trixie".
        packages: their names.
        folder: absolute; keeps what was downloaded for the next time, and nothing older.
        architecture: Debian's name of it.

    Raises:
        ImageError: a tool, a mirror, the network or a package is missing.
    """
    archives = folder / "archives"
    configuration = _configured("deb", suite, folder, architecture)
    wanted = {archives / name for name in _names(configuration, packages)}
    # Not apt's autoclean: it keeps a kernel of another version as long as the mirror has that one, too.
    for path in archives.glob("*.deb"):
        if path not in wanted:
            path.unlink()
    _apt(configuration, "install", "--yes", "--download-only", *packages)
    return sorted(wanted)


def download_source(suite: str, package: str, folder: Path) -> Path:
    """Download a source package, and return upstream's part of it, a tar file.

    Args:
        suite: Debian release, such as "trixie".
        package: its name.
        folder: absolute; gets the files.

    Raises:
        ImageError: a tool, a mirror, the network or the package is missing.
    """
    configuration = _configured("deb-src", suite, folder, own_architecture())
    _apt(configuration, "source", "--download-only", package, folder=folder)
    return next(folder.glob(f"{package}_*.orig.tar.*z"))


def _configured(types: str, suite: str, folder: Path, architecture: str) -> Path:
    """Make apt's state of a release in a folder, and return its configuration."""
    _require("apt-get", "dpkg-deb")
    keyring = next((path for path in _KEYRINGS if path.exists()), None)
    if keyring is None:
        raise ImageError(f"{_KEYRINGS[0]} is missing: apt-get install debian-archive-keyring")
    for path in folder / "archives" / "partial", folder / "lists" / "partial", folder / "state":
        path.mkdir(parents=True, exist_ok=True)
    (folder / "status").write_bytes(b"")
    sources = _SOURCES.format(types=types, mirror=_mirror(), suite=suite, keyring=keyring)
    (folder / "lab.sources").write_text(sources)
    configuration = folder / "apt.conf"
    configuration.write_text(_CONFIGURATION.format(folder=folder, architecture=architecture))
    _apt(configuration, "update")
    return configuration


def _names(configuration: Path, packages: Sequence[str]) -> Iterator[str]:
    """Yield the name of each .deb file that packages and all that they depend on come in."""
    with tempfile.TemporaryDirectory() as empty:
        # It prints what is not in the archives yet.
        option = f"Dir::Cache::archives={empty}"
        printed = _apt(configuration, "install", "--yes", "--print-uris", "-o", option, *packages)
    for line in printed.splitlines():
        if line.startswith("'"):  # 'URI' NAME SIZE DIGEST
            yield line.split()[1]


def own_architecture() -> str:
    """Return Debian's name of this machine's architecture, such as "amd64".

    Raises:
        ImageError: this is neither Debian nor Ubuntu.
    """
    _require("dpkg")
    return subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()


def _require(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            raise ImageError(f"{tool} is not installed: this is built from Debian packages, on Debian or Ubuntu")


def _mirror() -> str:
    """Return the URL of the first Debian mirror among the machine's apt sources, of whatever release."""
    if mirror := os.environ.get(MIRROR_VARIABLE):
        return mirror
    # apt's own reader of both formats of source files.
    command = ["apt-get", "indextargets", "--format", _TARGET_FORMAT]
    targets = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    for line in targets.splitlines():
        address, _, rest = line.partition(" ")
        release, _, component = rest.partition(" ")
        # Other vendors name their suites after Debian's as well, but put another folder in the URL.
        if component == "main" and release in _RELEASES and address.rstrip("/").endswith("/debian"):
            return address
    raise ImageError(f"no Debian mirror among this machine's apt sources; name one in {MIRROR_VARIABLE} (a URL)")


def _apt(configuration: Path, *arguments: str, folder: Path | None = None) -> str:
    """Run apt-get, in a folder or here, and return what it said."""
    command = ["apt-get", "-c", str(configuration), "--quiet", *arguments]
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=folder,
        check=False,
    )
    if result.returncode:
        words = [line for line in result.stdout.splitlines() if line.startswith(("E:", "W:", "Err:"))]
        told = "\n".join(words or result.stdout.splitlines()[-5:])
        raise ImageError(f"apt-get {arguments[0]} failed; is the network there?\n{told}")
    return result.stdout
