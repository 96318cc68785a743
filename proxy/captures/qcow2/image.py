"""A qcow2 image that is open: its header, its snapshots, its tables as they are needed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from formats.errors import MalformedStreamError
from formats.files import qcow2
from proxy.captures.positioned_io import read_at
from proxy.errors import ConfigError

if TYPE_CHECKING:
    from formats.files.qcow2 import Header, Snapshot


@dataclass(frozen=True, slots=True)
class Image:
    """An image.

    Attributes:
        file: Descriptor of its file.
        header: What its header says.
        snapshots: Its internal snapshots, the oldest first.
        snapshot_table_size: Bytes of their table.
    """

    file: int
    header: "Header"
    snapshots: "tuple[Snapshot, ...]"
    snapshot_table_size: int

    @classmethod
    def read(cls, file: int) -> "Image":
        """Read what stands at the beginning of a file, and the snapshots.

        Raises:
            FormatError: It is no image, or one that cannot be read.
            OSError: The file cannot be read.
        """
        start = read_at(file, 0, qcow2.HEADER_SIZE)
        if not start.startswith(qcow2.MAGIC):
            raise MalformedStreamError(f"no qcow2 image: it begins with {start[:4].hex(' ') or 'nothing'}", offset=0)
        header = qcow2.parse_header(start)
        table = b""
        if header.nb_snapshots:
            table = read_at(file, header.snapshots_offset, qcow2.LONGEST_SNAPSHOT_TABLE)
        return cls(file, header, *qcow2.parse_snapshots(table, header))

    def snapshot(self, name: str) -> "Snapshot":
        """Return the snapshot of a name or, where none has it, of an id.

        Raises:
            ConfigError: There is none, or more than one has the name, or it has no VM state.
        """
        found = [one for one in self.snapshots if one.name == name] or [one for one in self.snapshots if one.id == name]
        if not found:
            raise ConfigError(f"there is no snapshot {name!r}; {self.listed}")
        if len(found) > 1:
            ids = ", ".join(one.id for one in found)
            raise ConfigError(f"{len(found)} snapshots have the name {name!r}; give the id of one: {ids}")
        if not found[0].vm_state_size:
            raise ConfigError(
                f"snapshot {name!r} has no VM state here; QEMU puts it into the first of the guest's images that takes "
                "snapshots"
            )
        return found[0]

    @property
    def listed(self) -> str:
        """The snapshots' names, for people."""
        return (
            f"there are {', '.join(repr(one.name) for one in self.snapshots)}" if self.snapshots else "there are none"
        )

    def table(self, offset: int, size: int, skipped: int = 0) -> bytes:
        """Read a table of `size` bytes, but for the first `skipped` ones.

        Raises:
            MalformedStreamError: It begins at no cluster's start, or the file ends within it.
            OSError: The file cannot be read.
        """
        if offset % self.header.cluster_size:
            raise MalformedStreamError("a table of this qcow2 image begins at no cluster's start", offset=offset)
        found = read_at(self.file, offset + skipped, size - skipped)
        if len(found) < size - skipped:
            raise MalformedStreamError(
                "this qcow2 image ends within one of its tables", offset=offset + skipped + len(found)
            )
        return found

    def refcount(self, place: int) -> int:
        """Return how often the cluster at a place of the file is referred to. Raises as `table` does."""
        header = self.header
        per_block = header.cluster_size * 8 // header.refcount_bits
        block, index = divmod(place // header.cluster_size, per_block)
        if block >= header.refcount_table_clusters * header.cluster_size // 8:
            return 0
        entry = self.table_entry(header.refcount_table_offset, block)
        offset = qcow2.table_at(entry)
        if offset is None:
            return 0
        return qcow2.refcount_in(self.table(offset, header.cluster_size), index, header.refcount_bits)

    def table_entry(self, table: int, index: int) -> int:
        """Return an entry of a table of 64-bit numbers. Raises as `table` does."""
        found = read_at(self.file, table + index * 8, 8)
        if len(found) < 8:
            raise MalformedStreamError("this qcow2 image ends within one of its tables", offset=table)
        return int.from_bytes(found, "big")

    def is_metadata(self, place: int) -> bool:
        """Tell whether a cluster of the file holds what tells where the others are, as far as the header says."""
        header = self.header
        own = [
            (0, header.cluster_size),
            (header.l1_table_offset, header.l1_size * 8),
            (header.refcount_table_offset, header.refcount_table_clusters * header.cluster_size),
            (header.snapshots_offset, self.snapshot_table_size),
            *((one.l1_table_offset, one.l1_size * 8) for one in self.snapshots),
        ]
        return any(start < place + header.cluster_size and place < start + size for start, size in own)
