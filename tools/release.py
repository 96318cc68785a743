"""Make a release: changelog and version, wheel and sdist, Debian packages, checksums; then a commit and a tag.

Nothing is pushed. A step that fails leaves the tree as it was.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from tools.build_deb import MACHINES, PYTHONS, ROOT, build

if TYPE_CHECKING:
    from pathlib import Path

DIST = ROOT / "dist"
CHANGELOG = ROOT / "CHANGELOG.md"
VERSION_FILE = ROOT / "proxy" / "__init__.py"

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_UNRELEASED = "## [Unreleased]\n"


class ReleaseError(Exception):
    """What stands in the way of a release."""


def run(*command: str | Path) -> str:
    """Run a command in the tree, and return what it prints."""
    return subprocess.run(
        [str(word) for word in command], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


def check(version: str) -> None:
    """See that a release can be made of the tree as it is.

    Raises:
        ReleaseError: It cannot.
    """
    if not _VERSION.fullmatch(version):
        raise ReleaseError(f"VERSION={version}: write it as 0.2.0")
    if run("git", "status", "--porcelain"):
        raise ReleaseError("there are changes that are not committed")
    if f"v{version}" in run("git", "tag").split():
        raise ReleaseError(f"there is a v{version} already")
    _, _, unreleased = CHANGELOG.read_text().partition(_UNRELEASED)
    if not unreleased.partition("\n## [")[0].strip():
        raise ReleaseError("nothing stands under [Unreleased] in CHANGELOG.md")


def set_version(version: str) -> None:
    """Give the changelog's newest section, and the program, the version."""
    day = time.strftime("%Y-%m-%d", time.gmtime())
    text = CHANGELOG.read_text()
    CHANGELOG.write_text(text.replace(_UNRELEASED, f"{_UNRELEASED}\n## [{version}] - {day}\n", 1))
    text = VERSION_FILE.read_text()
    changed = re.sub(r'__version__ = "[^"]*"', f'__version__ = "{version}"', text)
    VERSION_FILE.write_text(changed)


def build_all() -> list[Path]:
    """Build wheel, sdist and Debian packages into an empty dist/, and write their checksums; return all files."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", DIST, ROOT)
    run(sys.executable, "-m", "twine", "check", "--strict", *DIST.iterdir())
    for suite in PYTHONS:
        for architecture in MACHINES:
            build(suite, architecture, DIST)
    files = sorted(DIST.iterdir())
    sums = DIST / "SHA256SUMS"
    sums.write_text("".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files))
    return [*files, sums]


def release(version: str) -> None:
    """Make a release; see the module."""
    check(version)
    try:
        set_version(version)
        files = build_all()
        run("git", "commit", "--quiet", "--all", "--message", f"Release {version}")
        run("git", "tag", "--annotate", f"v{version}", "--message", f"vmstate-proxy {version}")
    except BaseException:
        run("git", "checkout", "--quiet", "--", CHANGELOG, VERSION_FILE)
        raise
    for path in files:
        print(path.relative_to(ROOT))
    print(f"v{version} is committed and tagged here; push it with: git push --follow-tags")


def main() -> None:
    """Make the release that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", metavar="VERSION")
    try:
        release(parser.parse_args().version)
    except ReleaseError as error:
        sys.exit(f"release: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"release: {error}")


if __name__ == "__main__":
    main()
