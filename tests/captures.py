"""The manifest of captures/: what each recorded stream is."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CAPTURES = Path(__file__).resolve().parents[1] / "captures"
MANIFEST = CAPTURES / "MANIFEST.tsv"
NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Capture:
    """A line of the manifest; captures/README.md says what the columns mean."""

    file: str
    outcome: str
    qemu: str
    linux: str
    accelerator: str
    cpu: str
    machine: str
    vcpus: str
    midr: str
    capabilities: str
    vmdesc: str
    command: str
    sha256: str

    @property
    def name(self) -> str:
        """The file's name, without its ending."""
        return self.file.removesuffix(".xz")

    @property
    def path(self) -> Path:
        """The file."""
        return CAPTURES / self.file

    @property
    def arm64(self) -> bool:
        """Whether its vCPUs are arm64 ones."""
        return self.machine.startswith("virt-")

    @property
    def whole(self) -> bool:
        """Whether the parser reads it to its end: a precopy migration that nobody broke off."""
        return "postcopy-ram" not in self.capabilities and self.outcome != "refused"

    @property
    def saved_on_kvm(self) -> bool:
        """Whether it is the plainest of all: a paused arm64 guest's of a KVM host, with a vmdesc."""
        return self.outcome == "saved" and self.accelerator == "kvm" and self.vmdesc == "yes"


@cache
def read_manifest() -> tuple[Capture, ...]:
    """Return the manifest's lines; none if there is no manifest yet."""
    if not MANIFEST.exists():
        return ()
    _, *rows = csv.reader(MANIFEST.read_text(encoding="utf-8").splitlines(), delimiter="\t")
    return tuple(Capture(*row) for row in rows)
