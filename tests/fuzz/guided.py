"""Coverage-guided fuzzing of one target with atheris, whose wheels are for CPython on x86-64 and macOS only.

    make fuzz-guided SECONDS=600 TARGET=parser

Inputs are changed by the same hands as without it, in tests/fuzz/mutations.py; what reaches new code is kept in
build/fuzz/corpus/TARGET, and goes on from there the next time.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["formats", "proxy"]):
    from tests.fuzz.mutations import mutated
    from tests.fuzz.running import FAILURES, OFTEN, PIECES
    from tests.fuzz.targets import TARGETS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided", description=__doc__)
    parser.add_argument("--target", choices=[target.name for target in TARGETS], default="parser")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    [target] = [one for one in TARGETS if one.name == given.target]
    corpus = FAILURES / "corpus" / target.name.replace(" ", "-")
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)

    def change(data: bytes, most: int, seed: int) -> bytes:
        return mutated((data or b"\0",), random.Random(seed), target.ways)[:most]

    def take(data: bytes) -> None:
        [size] = random.Random(len(data)).choices(PIECES, OFTEN)
        target.run(data, size)

    most = 2 * max(map(len, target.seeds()))
    options = [f"-max_total_time={given.seconds}", f"-seed={given.seed}", f"-max_len={most}", "-timeout=10"]
    options += ["-rss_limit_mb=2048", f"-artifact_prefix={FAILURES}/guided-", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(Path(corpus))], take, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
