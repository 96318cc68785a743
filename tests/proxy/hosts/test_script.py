"""`host probe --script`: one file, of the same modules, for Python 3.6 and its standard library."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import vermin

from proxy.hosts.script.assembly import probe_script
from tests.proxy.helpers import ROOT

SCRIPT = probe_script()
MODULES = dict(re.findall(r"^_module\('([\w.]+)', r'''\n(.*?)\n'''\)$", SCRIPT, re.MULTILINE | re.DOTALL))

EXAMPLE = """
from proxy.hosts.probe import other_kinds
from proxy.hosts.profile import HostProfile, variant_of
from proxy.hosts.profile_text import write_profile
from proxy.hosts.taken import TakenField
values = {0x603000000013C000: 0x411FD070, 0x603000000013C020: 0x12, 0x6030000000140000: 0x10001}
taken = {0x603000000013C020: (TakenField("CSV2", 56, 4, frozenset({0, 1})), TakenField("bits 3:0", 0, 4, None))}
def profile(**more):
    return HostProfile("an \\"example\\"", values, frozenset({0x603000000013DCE0}), kernel="Linux", taken=taken, **more)
without = HostProfile("", {0x603000000013C000: 0x411FD070, 0x603000000013C020: 0x11}, frozenset(), vcpu_features=())
variant = variant_of(profile(vcpu_features=("PMU_V3",)), without)
print(write_profile(profile(vcpu_features=("PMU_V3",), variants=(variant,), all_kinds=True, timer_frequency=1)))
print([sorted(feature.name for feature in kind) for kind in other_kinds(["PMU_V3", "SVE", "PSCI_0_2"])])
print([sorted(kind) for kind in profile().kinds], profile() == profile(), variant == variant_of(profile(), without))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-", *arguments], input=SCRIPT, capture_output=True, text=True, timeout=60, check=False
    )


def test_it_holds_the_modules_that_probe() -> None:
    for name in ("proxy.hosts.kvm", "proxy.hosts.taken", "proxy.hosts.probe", "proxy.hosts.profile_text", "older"):
        assert name in MODULES


def test_python_3_6_knows_all_that_it_uses() -> None:
    """The grammar, by CPython's own parser; names of the standard library and the rest of the syntax, by vermin."""
    config = vermin.Config()
    config.set_verbose(0)
    for text in (SCRIPT.partition("\n_module(")[0], *MODULES.values()):
        ast.parse(text, feature_version=(3, 6))
        needs = vermin.detect(text, config)
        assert needs[1] is None or needs[1] <= (3, 6), text[:200]


def test_it_imports_nothing_but_the_standard_library() -> None:
    for text in MODULES.values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                assert all(alias.name in sys.stdlib_module_names | {"older"} for alias in node.names)
            if isinstance(node, ast.ImportFrom) and node.module not in MODULES:
                assert node.module in sys.stdlib_module_names


def test_where_there_is_no_arm64_kvm_it_says_so() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("probe: this is a machine of architecture ")
    assert "Traceback" not in done.stderr
    assert "--qemu" in run("--help").stdout


def test_what_is_written_out_does_the_same() -> None:
    """The same few lines, by the script's modules and by those that it is made of."""
    ours = run_python(EXAMPLE)
    assert "[[variants]]" in ours
    assert run_python(SCRIPT.rpartition("\nsys.exit(")[0] + EXAMPLE) == ours


def run_python(source: str) -> str:
    done = subprocess.run(
        [sys.executable, "-"], input=source, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout
