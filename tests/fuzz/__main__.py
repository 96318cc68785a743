"""`make fuzz`: seconds, seed and targets; exit code 1 where an input failed, which is then kept in build/fuzz."""

from __future__ import annotations

import argparse
import sys

from tests.fuzz.running import FAILURES, fuzz
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--runs", type=int, help="at most so many")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=(), choices=[target.name for target in TARGETS], metavar="TARGET")
    given = parser.parse_args()
    tally = fuzz(seed=given.seed, seconds=given.seconds, only=given.only, runs=given.runs)
    print(f"seed {given.seed}: {tally}")
    if tally.failures:
        print(f"the inputs are in {FAILURES}")
    return bool(tally.failures)


sys.exit(main())
