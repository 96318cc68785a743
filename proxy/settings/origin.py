"""Which file something was read from: its path, and what its bytes were."""

from hashlib import sha256

import msgspec


class Origin(msgspec.Struct, frozen=True):
    """A file that was read.

    Attributes:
        path: As it was named.
        sha256: Of its bytes, 64 hexadecimal digits.
    """

    path: str
    sha256: str

    def as_dict(self) -> dict[str, str]:
        """Return it as it goes into JSON."""
        return {"path": self.path, "sha256": self.sha256}


def origin_of(path: object, content: bytes) -> Origin:
    """Return the origin of what was read from a file."""
    return Origin(str(path), sha256(content).hexdigest())
