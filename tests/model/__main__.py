"""`make model`: what the walks find, as text."""

from __future__ import annotations

from tests.model.explorer import explore
from tests.model.precopy import Precopy

for words, model in {
    "no fault": Precopy(most_faults=0),
    "one fault": Precopy(most_faults=1),
    "three faults": Precopy(most_faults=3),
    "three faults, the destination with -S under a coordinator": Precopy(most_faults=3, coordinated=True),
    "no fault, and no return path (--allow-no-return-path)": Precopy(most_faults=0, return_path=False),
}.items():
    print(f"{words}: {explore(model)}\n")
