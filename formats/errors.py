"""The errors of the wire formats; each says where in the stream it arose and what can be done.

FormatError
+-- MalformedStreamError         the bytes are no migration stream, or a broken one
|   +-- ForeignStreamError       it does not begin as one
|   |   +-- EncryptedStreamError it begins with a TLS handshake
|   +-- TruncatedStreamError     it ends before its end
+-- RefusedStreamError           it may well be sound, but cannot be handled safely
    +-- UnlocatableSectionError  a section whose bounds cannot be told for certain
    +-- UnknownCpuVersionError   an arm64 `cpu` section of a layout that is not known
    +-- DeviceStateTooLargeError more device state than may be held
    +-- UnsupportedFeatureError  a capability that is understood well enough to know that it is not
"""


class FormatError(Exception):
    """A stream that cannot be read on.

    Attributes:
        message: What is wrong, without a full stop.
        offset: Offset in the stream, in bytes from its start, where it is wrong.
        section: The section it is in, as `name/instance` or a phrase; None outside of any.
        advice: What the operator can do; may be empty.
    """

    def __init__(self, message: str, *, offset: int, section: str | None = None, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset
        self.section = section
        self.advice = advice

    def __str__(self) -> str:
        return self.without_advice + (f"; {self.advice}" if self.advice else "")

    @property
    def without_advice(self) -> str:
        """What is wrong, and where, for those to whom the advice does not apply."""
        section = "" if self.section is None else f", section {self.section}"
        return f"offset {self.offset:#x}{section}: {self.message}"


class MalformedStreamError(FormatError):
    """The bytes do not follow the grammar of a migration stream."""


class ForeignStreamError(MalformedStreamError):
    """The bytes do not begin as the main channel of a migration begins."""


class EncryptedStreamError(ForeignStreamError):
    """The bytes begin with a TLS handshake; what is in it cannot be read here."""


class TruncatedStreamError(MalformedStreamError):
    """The stream ended before its end of file."""


class RefusedStreamError(FormatError):
    """The stream is not known to be broken, but nothing safe can be done with it."""


class UnlocatableSectionError(RefusedStreamError):
    """A section has no bounds, or more than one set of bounds, that fit the stream."""


class UnknownCpuVersionError(RefusedStreamError):
    """An arm64 `cpu` section has a version or a layout that this program does not know."""


class DeviceStateTooLargeError(RefusedStreamError):
    """The device state is larger than the limit that it may be held in."""


class UnsupportedFeatureError(RefusedStreamError):
    """The stream uses a migration capability that is refused by name."""
