"""The file that a migration is recorded into: what is whole is called by its name, what broke off is not."""

import gzip
import lzma
import os
import stat
import sys
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, Final

from proxy.errors import ConfigError, ProxyError
from proxy.stdio import STDIO

if TYPE_CHECKING:
    from formats.frame.event import Raw

PARTIAL: Final = ".partial"


class RecordingFile:
    """A file that is called NAME.partial until it is complete; packed, where NAME ends in .xz or .gz.

    Standard output, as `-`, and what is no regular file are written as they are.

    Attributes:
        name: What it is called when it is complete.
        partial: What it is called before.
    """

    def __init__(self, name: str) -> None:
        """Open the file.

        Raises:
            ProxyError: It cannot be created.
            ConfigError: It cannot be packed as its name says.
        """
        if name.endswith((".zst", ".bz2", ".lz4")):
            raise ConfigError(f"{name}: recordings are packed as .xz or .gz; with any other name they are not")
        self.name = self.partial = name
        self._path = os.path.realpath(name)
        self._raw: IO[bytes] | None = None
        self._file: Any = sys.stdout.buffer
        if name == STDIO:
            return
        if os.path.isfile(self._path) or not os.path.exists(self._path):
            self.partial += PARTIAL
        try:
            self._raw = open(self._path + self._suffix, "wb", opener=_for_its_owner)  # noqa: SIM115
        except OSError as error:
            raise ProxyError(f"{self.partial}: {error.strerror}") from error
        self._file = _packed(name, self._raw)

    @property
    def _suffix(self) -> str:
        return self.partial[len(self.name) :]

    def write(self, data: "Raw") -> None:
        """Write on; raises OSError."""
        self._file.write(data)

    def keep(self) -> None:
        """Close it, and give it its name; raises OSError."""
        self._close()
        if self._suffix:
            os.replace(self._path + self._suffix, self._path)

    def break_off(self) -> None:
        """Close it, and leave it under the name that says that it is not complete."""
        with suppress(OSError):
            self._close()

    def discard(self) -> None:
        """Close it, and remove it."""
        self.break_off()
        if self._suffix:
            with suppress(OSError):
                os.unlink(self._path + self._suffix)

    def _close(self) -> None:
        if self._raw is None:
            self._file.flush()
            return
        with self._raw:
            if self._file is not self._raw:
                self._file.close()  # which writes what the packer still holds
            self._raw.flush()
            if self._suffix:
                # A name that says that all is there must not outlive a power cut that the bytes did not.
                os.fsync(self._raw.fileno())


def _for_its_owner(path: str, flags: int) -> int:
    """Open a file that holds a guest's memory, for nobody but its owner, even if it was there before."""
    descriptor = os.open(path, flags, 0o600)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.fchmod(descriptor, 0o600)
    return descriptor


def _packed(name: str, raw: IO[bytes]) -> Any:  # noqa: ANN401
    """Pack, but lightly: while a source waits for it, its guest goes on dirtying memory that it then sends again."""
    if name.endswith(".xz"):
        return lzma.LZMAFile(raw, "wb", preset=0)
    if name.endswith(".gz"):
        return gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=1)
    return raw
