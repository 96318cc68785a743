"""The VM state of a snapshot, as a stream that is read, and as places of the image that may be written."""

import os
from typing import TYPE_CHECKING

from formats.errors import FormatError, MalformedStreamError
from proxy.captures.positioned_io import read_into
from proxy.captures.qcow2.layer import Layer
from proxy.captures.qcow2.owners import Owners
from proxy.errors import ProxyError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats.files.qcow2 import Snapshot
    from proxy.captures.qcow2.image import Image


class VmState:
    """The VM state of one snapshot; offsets count from its beginning, in bytes. It is `Places`, too.

    Attributes:
        size: Bytes of it.
    """

    def __init__(self, image: "Image", snapshot: "Snapshot") -> None:
        """Read where it lies.

        Raises:
            MalformedStreamError: The snapshot's L1 table is too short for it, or the file for that.
            OSError: The file cannot be read.
        """
        self.size = snapshot.vm_state_size
        self._image = image
        self._snapshot = snapshot
        self._position = 0
        self._layer = Layer(image, snapshot.l1_table_offset, snapshot.l1_size, snapshot.disk_size, self.size)
        self._owners: Owners | None = None
        if self._layer.span < self.size:
            raise MalformedStreamError(
                f"the VM state of snapshot {snapshot.name!r} is said to have {self.size} bytes, more than its L1 table "
                "has entries for",
                offset=snapshot.l1_table_offset,
            )

    # --- as a file that is read

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Read on into a buffer; 0 is the end.

        Raises:
            OSError: The file cannot be read, or is not what an image is.
        """
        view = memoryview(buffer)[: self.size - self._position]
        try:
            self._fill(self._position, view)
        except FormatError as error:
            raise OSError(str(error)) from error
        self._position += len(view)
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a place.

        Raises:
            ValueError: A hole is asked for; none are known.
        """
        if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
            raise ValueError("no holes are known")
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = min(start + offset, self.size)
        return self._position

    def tell(self) -> int:
        """Return the place that is read next."""
        return self._position

    def fileno(self) -> int:
        """Return the descriptor of the image."""
        return self._image.file

    # --- as places of the image

    def runs(self, offset: int, length: int) -> "Iterator[tuple[int, int]]":
        """See `Places.runs`: only clusters that are this VM state's alone may be written.

        Raises:
            ProxyError: A cluster is another's, too, or is not there.
            FormatError: The image is not what it should be.
        """
        if self._owners is None:
            self._owners = Owners(self._image, self._snapshot)
        for place, size in self._layer.runs(offset, length):
            if place is None:
                raise ProxyError(f"at {offset:#x} the image has no cluster of its own to write to; give OUT")
            self._owners.check(place, size, offset)
            yield place, size
            offset += size

    def read(self, file: int, offset: int, length: int) -> bytes:
        """See `Places.read`; `file` is the image's."""
        buffer = bytearray(min(length, self.size - offset))
        self._fill(offset, memoryview(buffer))
        return bytes(buffer)

    def last_to(self, end: int, size: int) -> bool:
        """See `Places.last_to`: whatever follows in the image, it does not become shorter."""
        return False

    def _fill(self, offset: int, view: memoryview) -> None:
        done = 0
        for place, length in self._layer.runs(offset, len(view)):
            piece = view[done : done + length]
            if place is None:
                piece[:] = bytes(length)
            elif read_into(self._image.file, place, piece) < length:
                raise MalformedStreamError("this qcow2 image ends within a VM state", offset=place)
            done += length
