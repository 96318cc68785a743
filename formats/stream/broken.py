"""What is wrong with a stream that does not go on as the grammar has it."""

from formats.errors import (
    FormatError,
    MalformedStreamError,
    TruncatedStreamError,
    UnlocatableSectionError,
    UnsupportedFeatureError,
)
from formats.stream.grammar import State


def unexpected(byte: int, state: State, offset: int, section: str | None) -> FormatError:
    """Return the error for a byte that is no type of a record that may come in a state."""
    if state is State.ITERABLE_FOOTER:
        return UnlocatableSectionError(
            "it has no footer; machine types before 2.4 send none",
            offset=offset,
            section=section,
            advice="use a newer machine type, or send-section-footer=on",
        )
    return MalformedStreamError(f"byte {byte:#04x}, where {state.value} should follow", offset=offset)


def truncated(state: State, end: int, section: str | None) -> TruncatedStreamError:
    """Return the error for a stream that ends in a state in which it must go on."""
    return TruncatedStreamError(
        f"the stream ends where {state.value} should follow",
        offset=end,
        section=section,
        advice="the source broke off, or the file was cut",
    )


def too_long(end: int) -> MalformedStreamError:
    """Return the error for bytes that follow the end of a stream."""
    return MalformedStreamError("more bytes follow the end of the stream", offset=end)


def unsupported(feature: str, advice: str, offset: int) -> UnsupportedFeatureError:
    """Return the error for what is refused by name; see `formats.stream.refusals`."""
    return UnsupportedFeatureError(f"{feature} is not supported", offset=offset, advice=advice)
