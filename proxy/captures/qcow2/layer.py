"""One layer of an image, a snapshot's or the active one, as far as it maps VM state: what lies behind its disk."""

from typing import TYPE_CHECKING

from formats.files import qcow2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.captures.qcow2.image import Image


class Layer:
    """The VM state of a layer: which of its bytes lie where in the file. Offsets count from its beginning.

    Attributes:
        tables: Where its L2 tables are in the file; None for one that it does not have.
    """

    def __init__(self, image: "Image", l1_table_offset: int, l1_size: int, disk_size: int, state_size: int) -> None:
        """Read what its L1 table has behind the disk.

        Args:
            image: The image.
            l1_table_offset: Where its L1 table is in the file.
            l1_size: Entries of that.
            disk_size: Bytes of its disk.
            state_size: Bytes of VM state that are asked for; what lies behind them is not looked at.

        Raises:
            MalformedStreamError: The file ends before.
            OSError: The file cannot be read.
        """
        self._image = image
        first = qcow2.first_l1_entry(image.header, disk_size)
        last = min(l1_size, first - -state_size // image.header.l2_span)
        l1 = image.table(l1_table_offset, last * 8, first * 8) if last > first else b""
        self.tables = [qcow2.table_at(int.from_bytes(l1[at : at + 8], "big")) for at in range(0, len(l1), 8)]
        self._read: dict[int, bytes] = {}

    @property
    def span(self) -> int:
        """How many bytes of VM state its L1 table has entries for."""
        return len(self.tables) * self._image.header.l2_span

    def place(self, offset: int) -> int | None:
        """Return where a byte is in the file; None where it has no place, and is zero.

        Raises:
            FormatError: The image is not what it should be.
            OSError: The file cannot be read.
        """
        header = self._image.header
        index, within = divmod(offset, header.l2_span)
        at = self.tables[index] if index < len(self.tables) else None
        if at is None:
            return None
        if index not in self._read:
            self._read[index] = self._image.table(at, header.cluster_size)
        start = qcow2.unit_at(header, self._read[index], within // header.unit_size, at)
        return None if start is None else start + within % header.unit_size

    def runs(self, offset: int, length: int) -> "Iterator[tuple[int | None, int]]":
        """Yield where a stretch lies, what is together in the file as one; None: it is zeroes. Raises as `place`."""
        unit = self._image.header.unit_size
        start: int | None = None
        so_far = 0
        end = offset + length
        while offset < end:
            step = min(unit - offset % unit, end - offset)
            place = self.place(offset)
            if so_far and (place is None) == (start is None) and (start is None or start + so_far == place):
                so_far += step
            else:
                if so_far:
                    yield start, so_far
                start, so_far = place, step
            offset += step
        if so_far:
            yield start, so_far
