"""One host of a fleet."""

from dataclasses import dataclass, field, replace
from typing import Any

from formats.arm.midr import parse_midr_el1
from proxy.hosts.profile import HostProfile
from proxy.hosts.profile_text import write_profile


@dataclass(frozen=True, slots=True)
class FleetHost:
    """One host.

    Attributes:
        name: What it is called.
        profile: Its profile.
        same_as: Equal for hosts whose profiles tell the same; their guests are judged once.
    """

    name: str
    profile: HostProfile
    same_as: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Write down what the profile tells, without its description."""
        object.__setattr__(self, "same_as", write_profile(replace(self.profile, description="")))

    @property
    def processor(self) -> str:
        """The processor, for people."""
        midr = self.profile.midr
        return "a processor without an id" if midr is None else str(parse_midr_el1(midr))

    def as_dict(self) -> dict[str, Any]:
        """Return it as it goes into JSON."""
        midr = self.profile.midr
        return {
            "name": self.name,
            "description": self.profile.description,
            "midr": None if midr is None else f"{midr:#x}",
            "processor": self.processor,
            "kernel": self.profile.kernel,
        }
