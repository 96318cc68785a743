"""What follows the end of a stream in a file or volume that is longer than it: how much, and whether it is zeroes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from formats.frame.event import Raw
    from formats.stream.events import TrailingBytes

_STEP: Final = 1 << 20


@dataclass(slots=True)
class Trailing:
    """The bytes after the end of a stream.

    Attributes:
        length: How many there are.
        looked_at: How many of them were looked at.
        zeroes: Whether all that were looked at are zero.
    """

    length: int = 0
    looked_at: int = 0
    zeroes: bool = True

    def add(self, event: "TrailingBytes") -> None:
        """Take note of a stretch of them."""
        self.length += event.length
        if len(event.raw) or event.zeroes:
            self.looked_at += event.length
        self.zeroes &= event.zeroes or not len(event.raw) or is_zero(event.raw)

    @property
    def all_zeroes(self) -> bool | None:
        """Whether all of them are zero; None where those that were looked at are, and not all were."""
        return None if self.zeroes and self.looked_at < self.length else self.zeroes

    def as_dict(self) -> dict[str, int | bool | None]:
        """Return it as it goes into JSON."""
        return {"bytes": self.length, "zeroes": self.all_zeroes}

    def __str__(self) -> str:
        if self.all_zeroes is None:
            kind = f"the first {self.looked_at} are zeroes, the others were not looked at"
        else:
            kind = "zeroes" if self.zeroes else "not zeroes"
        return f"{self.length} bytes follow the end of the stream ({kind})"


def is_zero(data: "Raw") -> bool:
    """Tell whether all bytes are zero."""
    zeroes = bytes(min(len(data), _STEP))
    # As bytes: views are compared element by element.
    return all(bytes(data[at : at + _STEP]) == zeroes[: len(data) - at] for at in range(0, len(data), _STEP))
