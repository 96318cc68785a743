"""`make qtest`: QEMU's migration-test, directly and through the proxy; exit code 1 where the proxy breaks a test.

Modes: `direct` goes past the proxy, to know which tests pass at all; `observe` takes all of them through it; `repair`
all without TLS, with the profile of the tests' processor; `tls` those over TCP with x509 certificates, whose TLS ends
at the proxy, with the tests' own certificates.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.lab.pki import Authority
from tests.lab.proxy import vmstate_proxy
from tests.lab.qmp import LabError
from tests.lab.vm import running_vm
from tests.qtest.building import ARCHITECTURES, Built, build
from tests.qtest.running import Run, listed, run

if TYPE_CHECKING:
    from collections.abc import Sequence

_OTHER_NAME = "/override-host"
_NEVER_DIALLED = "/mismatch-host"
"""Its source does not trust who it meets, and its destination is to exit at that; a proxy does not dial it then."""
_NO_RETURN_PATH = ("--allow-no-return-path",)
"""Many of the tests do without."""

MODES = ("direct", "observe", "repair", "tls")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.qtest", description=__doc__)
    parser.add_argument("--arch", nargs="*", default=list(ARCHITECTURES), choices=ARCHITECTURES)
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=MODES)
    parser.add_argument("--only", default="", help="tests with this in their names")
    parser.add_argument("--log", type=Path, help="where to write what failed tests said")
    given = parser.parse_args()
    try:
        return trio.run(run_all, given)
    except LabError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


async def run_all(given: argparse.Namespace) -> int:
    """Run what was asked for, print a line for each run, and return the exit code."""
    with tempfile.TemporaryDirectory(prefix="vmstate-qtest-") as folder:
        return await run_modes(given, Path(folder))


async def run_modes(given: argparse.Namespace, folder: Path) -> int:
    """Do that with a folder for profiles."""
    built = await trio.to_thread.run_sync(build, lambda line: print(line, file=sys.stderr, flush=True))
    broken = False
    logs = []
    for architecture in given.arch:
        tests = [test for test in await listed(built, architecture) if given.only in test]
        passed = set(tests)
        for mode in given.modes:
            mine = [test for test in tests if test in passed and belongs(test, mode)]
            options = await options_of(mode, built, architecture, folder)
            if mode == "tls":
                found = await run_tls(built, architecture, mine, options, folder)
            else:
                found = await run(built, architecture, mine, options)
            print(line_of(architecture, mode, found), flush=True)
            for test in sorted(found.failed):
                print(f"  {test}", flush=True)
            logs.append(f"=== {architecture}, {mode}\n{found.output}")
            if mode == "direct":
                passed = found.passed
            else:
                broken = broken or bool(found.failed)
    if given.log is not None:
        given.log.write_text("\n".join(logs))
    return int(broken)


def belongs(test: str, mode: str) -> bool:
    """Tell whether a test is run in a mode."""
    if mode == "repair":
        return "/tls/" not in test
    return mode != "tls" or ("/tcp/" in test and "/tls/x509/" in test and not test.endswith(_NEVER_DIALLED))


async def run_tls(
    built: Built, architecture: str, tests: Sequence[str], options: Sequence[str] | None, folder: Path
) -> Run:
    """Run tests whose TLS ends at the proxy, which is told where a test's certificates have another host's name."""
    credentials = folder / "credentials"
    whole = Run()
    for named in (False, True):
        if not credentials.exists():
            credentials.unlink(missing_ok=True)
            credentials.symlink_to(Authority().folder(folder / "first", "server", "client"))
        mine = [test for test in tests if test.endswith(_OTHER_NAME) == named]
        tls = ["--tls", str(credentials), "--require-tls", "--tls-any-client"]
        name = ["--tls-hostname", "qemu.org"] if named else []
        found = await run(built, architecture, mine, [*(options or ()), *tls, *name], credentials)
        whole.passed |= found.passed
        whole.failed |= found.failed
        whole.outcomes += found.outcomes
        whole.output += found.output
    return whole


def line_of(architecture: str, mode: str, found: Run) -> str:
    """Say what came of a run."""
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.outcomes.items()))
    through = f"; the proxy reported {outcomes}" if outcomes else ""
    return f"{architecture}, {mode}: {len(found.passed)} of {len(found.passed | found.failed)} passed{through}"


async def options_of(mode: str, built: Built, architecture: str, folder: Path) -> list[str] | None:
    """Return what the proxy is told; None for no proxy."""
    if mode == "direct":
        return None
    if mode == "observe":
        return ["--mode", "observe"]
    if architecture != "aarch64":
        return ["--midr", "cortex-a57 r1p0", "--allow-midr", "none", *_NO_RETURN_PATH]
    return ["--host", await learn(built, folder), *_NO_RETURN_PATH]


async def learn(built: Built, folder: Path) -> str:
    """Learn the profile of the processor that the tests' guests have, if that is not there; return its path."""
    stream, profile = folder / "stream", folder / "destination.toml"
    if profile.exists():
        return str(profile)
    qemu = str(built.qemu("aarch64"))
    async with running_vm(name="max", binary=qemu, machine="virt,gic-version=max", cpu="max", paused=True) as vm:
        await vm.migrate(f"exec:cat > '{stream}'", return_path=False)
        outcome = await vm.wait_migration()
        if outcome.status != "completed":
            raise LabError(f"no stream can be recorded: {outcome}")
    code, output = await vmstate_proxy("host", "learn", str(stream), "-o", str(profile), "--tcg")
    if code:
        raise LabError(output)
    return str(profile)


if __name__ == "__main__":
    sys.exit(main())
