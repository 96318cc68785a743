"""qcow2 images: where an internal snapshot has its VM state, the stream that `savevm` wrote.

The VM state lies behind the disk in the snapshot's own address space, which an L1 table maps to L2 tables and these to
clusters of the file. All numbers are big-endian. Nothing is opened here; `proxy.captures.qcow2` does that.

Source: QEMU `docs/interop/qcow2.txt`, `block/qcow2.h`, `block/qcow2-snapshot.c` (`qcow2_do_read_snapshots`),
`block/qcow2.c` (`qcow2_open`, `qcow2_load_vmstate`), `block/qcow2-refcount.c` (`get_refcount_ro0` and its like).
"""

from dataclasses import dataclass
from struct import Struct as Packed
from typing import Any, Final

from construct import Bytes, Int16ub, Int32ub, Int64ub, Struct

from formats.errors import MalformedStreamError, UnsupportedFeatureError

MAGIC: Final = b"QFI\xfb"
HEADER_SIZE: Final = 104
"""Bytes of a header of version 3 that are looked at; version 2 has 72."""

MOST_L1_ENTRIES: Final = (32 << 20) // 8
MOST_SNAPSHOTS: Final = 65536
LONGEST_SNAPSHOT_TABLE: Final = 64 << 20
"""Bytes. Source: QEMU `block/qcow2.h` (`QCOW_MAX_L1_SIZE`, `QCOW_MAX_SNAPSHOTS`, `QCOW_MAX_SNAPSHOTS_SIZE`)."""

_VERSIONS: Final = (2, 3)
_CLUSTER_BITS: Final = range(9, 22)
_OFFSET: Final = 0x00FFFFFFFFFFFE00
_COMPRESSED: Final = 1 << 62
_ZERO: Final = 1
_SUBCLUSTERS: Final = 32
_BE64: Final = Packed(">Q")

_HEADER: Final = Struct(
    "magic" / Bytes(4),
    "version" / Int32ub,
    "backing_file_offset" / Int64ub,
    "backing_file_size" / Int32ub,
    "cluster_bits" / Int32ub,
    "size" / Int64ub,
    "crypt_method" / Int32ub,
    "l1_size" / Int32ub,
    "l1_table_offset" / Int64ub,
    "refcount_table_offset" / Int64ub,
    "refcount_table_clusters" / Int32ub,
    "nb_snapshots" / Int32ub,
    "snapshots_offset" / Int64ub,
    "incompatible_features" / Int64ub,
    "compatible_features" / Int64ub,
    "autoclear_features" / Int64ub,
    "refcount_order" / Int32ub,
    "header_length" / Int32ub,
)
_SNAPSHOT: Final = Struct(
    "l1_table_offset" / Int64ub,
    "l1_size" / Int32ub,
    "id_size" / Int16ub,
    "name_size" / Int16ub,
    "seconds" / Int32ub,
    "nanoseconds" / Int32ub,
    "vm_clock" / Int64ub,
    "vm_state_size" / Int32ub,
    "extra_size" / Int32ub,
)
_ONLY_IN_VERSION_3: Final = ("incompatible_features", "compatible_features", "autoclear_features")
_EXTENDED_L2: Final = 1 << 4
_REFUSED: Final = (
    (1 << 0, "its reference counts are not up to date (dirty): a QEMU had it open when it was stopped", "{check}"),
    (1 << 1, "it is marked as corrupt", "{check}"),
    (1 << 2, "its data is in another file", "copy it into one image: qemu-img convert keeps no snapshots, savevm anew"),
)
_CHECK: Final = "see what qemu-img check says of it, and have it repair a copy: qemu-img check -r all"
_KNOWN_FEATURES: Final = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | _EXTENDED_L2


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of an image says.

    Attributes:
        cluster_bits: Bits of a cluster's size.
        size: Bytes of the disk, as its active layer has it.
        l1_size: Entries of the active layer's L1 table.
        l1_table_offset: Where that is in the file.
        refcount_table_offset: Where the table of refcount blocks is.
        refcount_table_clusters: Clusters that it has.
        refcount_bits: Bits of a reference count.
        nb_snapshots: How many internal snapshots there are.
        snapshots_offset: Where their table is.
        extended_l2: Whether L2 entries have 16 bytes, the second eight a bitmap of 32 subclusters.
    """

    cluster_bits: int
    size: int
    l1_size: int
    l1_table_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    refcount_bits: int
    nb_snapshots: int
    snapshots_offset: int
    extended_l2: bool

    @property
    def cluster_size(self) -> int:
        """Bytes of a cluster."""
        return 1 << self.cluster_bits

    @property
    def unit_size(self) -> int:
        """Bytes that lie, or do not lie, in the file together: a cluster, or a subcluster of it."""
        return self.cluster_size // (_SUBCLUSTERS if self.extended_l2 else 1)

    @property
    def l2_entries(self) -> int:
        """Entries of an L2 table, which fills a cluster."""
        return self.cluster_size // (16 if self.extended_l2 else 8)

    @property
    def l2_span(self) -> int:
        """Bytes of a layer that an L2 table maps."""
        return self.l2_entries * self.cluster_size


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An internal snapshot, as the table has it.

    Attributes:
        id: What tells it from the others.
        name: Its name; several may have the same.
        seconds: When it was taken, from 1970 on.
        vm_clock: For how long the guest had run, in nanoseconds.
        vm_state_size: Bytes of its VM state; 0 where only the disk was taken.
        disk_size: Bytes of the disk.
        l1_table_offset: Where its L1 table is in the file.
        l1_size: Entries of that.
    """

    id: str
    name: str
    seconds: int
    vm_clock: int
    vm_state_size: int
    disk_size: int
    l1_table_offset: int
    l1_size: int


def parse_header(data: bytes) -> Header:
    """Parse the first 104 bytes of an image; fewer where the file has no more.

    Raises:
        MalformedStreamError: It is cut short, or says what cannot be.
        UnsupportedFeatureError: Its VM states cannot be read, or not safely.
    """
    found: Any = _HEADER.parse(data.ljust(HEADER_SIZE, b"\0"))
    if len(data) < (HEADER_SIZE if found.version > _VERSIONS[0] else HEADER_SIZE - 32):
        raise MalformedStreamError("the header of this qcow2 image is cut short", offset=len(data))
    if found.version not in _VERSIONS:
        raise UnsupportedFeatureError(f"a qcow2 image of version {found.version}; 2 and 3 are known", offset=4)
    if found.version == _VERSIONS[0]:
        found.update(dict.fromkeys(_ONLY_IN_VERSION_3, 0) | {"refcount_order": 4, "header_length": 72})
    if found.crypt_method:
        raise UnsupportedFeatureError(
            "this qcow2 image is encrypted", offset=32, advice="give a decrypted copy of its VM state"
        )
    for bit, what, advice in _REFUSED:
        if found.incompatible_features & bit:
            raise UnsupportedFeatureError(
                f"this qcow2 image cannot be read: {what}", offset=72, advice=advice.format(check=_CHECK)
            )
    if unknown := found.incompatible_features & ~_KNOWN_FEATURES:
        raise UnsupportedFeatureError(f"a qcow2 image with the incompatible features {unknown:#x}", offset=72)
    extended = bool(found.incompatible_features & _EXTENDED_L2)
    if (
        found.cluster_bits not in _CLUSTER_BITS
        or (extended and found.cluster_bits < 14)
        or found.refcount_order > 6
        or found.l1_size > MOST_L1_ENTRIES
        or found.nb_snapshots > MOST_SNAPSHOTS
    ):
        raise MalformedStreamError("a qcow2 header that says what cannot be", offset=20, advice=_CHECK)
    return Header(
        cluster_bits=found.cluster_bits,
        size=found.size,
        l1_size=found.l1_size,
        l1_table_offset=found.l1_table_offset,
        refcount_table_offset=found.refcount_table_offset,
        refcount_table_clusters=found.refcount_table_clusters,
        refcount_bits=1 << found.refcount_order,
        nb_snapshots=found.nb_snapshots,
        snapshots_offset=found.snapshots_offset,
        extended_l2=extended,
    )


def parse_snapshots(data: bytes, header: Header) -> tuple[tuple[Snapshot, ...], int]:
    """Parse the snapshot table.

    Each entry has 40 bytes, then extra data (be64 size of the VM state where 32 bits do not do, be64 size of the disk,
    be64 icount; as far as there is), then id and name, and is filled up to a multiple of 8.

    Args:
        data: The file from `snapshots_offset` on, as far as it goes, or `LONGEST_SNAPSHOT_TABLE` bytes.
        header: The image's.

    Returns:
        The snapshots, and how many bytes the table has.

    Raises:
        MalformedStreamError: An entry is cut short, or says what cannot be.
    """
    snapshots: list[Snapshot] = []
    position = 0
    for _ in range(header.nb_snapshots):
        fixed = data[position : position + _SNAPSHOT.sizeof()]
        if len(fixed) < _SNAPSHOT.sizeof():
            raise _cut_table(header, position)
        found = _SNAPSHOT.parse(fixed)
        extra_at = position + len(fixed)
        name_at = extra_at + found.extra_size + found.id_size
        end = name_at + found.name_size
        if end > len(data) or found.l1_size > MOST_L1_ENTRIES:
            raise _cut_table(header, position)
        extra = [_BE64.unpack_from(data, extra_at + at)[0] for at in (0, 8) if at + 8 <= found.extra_size]
        snapshots.append(
            Snapshot(
                id=data[name_at - found.id_size : name_at].decode("utf-8", "backslashreplace"),
                name=data[name_at:end].decode("utf-8", "backslashreplace"),
                seconds=found.seconds,
                vm_clock=found.vm_clock,
                vm_state_size=extra[0] if extra else found.vm_state_size,
                disk_size=extra[1] if len(extra) > 1 else header.size,
                l1_table_offset=found.l1_table_offset,
                l1_size=found.l1_size,
            )
        )
        position = -(-end // 8) * 8
    return tuple(snapshots), position


def _cut_table(header: Header, position: int) -> MalformedStreamError:
    return MalformedStreamError(
        "the snapshot table of this qcow2 image is cut short, or broken",
        offset=header.snapshots_offset + position,
        advice=_CHECK,
    )


def first_l1_entry(header: Header, disk_size: int) -> int:
    """Return which entry of a layer's L1 table maps the beginning of its VM state: the first behind the disk."""
    return -(-disk_size // header.l2_span)


def table_at(entry: int) -> int | None:
    """Return where the table is that an L1 entry, or one of the refcount table, points to; None for none."""
    return entry & _OFFSET or None


def unit_at(header: Header, table: bytes, unit: int, table_offset: int) -> int | None:
    """Return where in the file a unit of a layer is.

    Args:
        header: The image's.
        table: The L2 table that maps it.
        unit: Its number, from the beginning of what the table maps.
        table_offset: Where the table is; used in errors only.

    Returns:
        Its place; None for one that has none, and is zeroes.

    Raises:
        UnsupportedFeatureError: It is compressed, as no VM state is that QEMU wrote.
        MalformedStreamError: Its cluster begins where none can.
    """
    per_cluster = header.cluster_size // header.unit_size
    cluster, sub = divmod(unit, per_cluster)
    width = 16 if header.extended_l2 else 8
    entry = _BE64.unpack_from(table, cluster * width)[0]
    place = table_offset + cluster * width
    if entry & _COMPRESSED:
        raise UnsupportedFeatureError("a compressed cluster in a VM state", offset=place, advice="savevm anew")
    host = entry & _OFFSET
    if header.extended_l2:
        bitmap = _BE64.unpack_from(table, cluster * width + 8)[0]
        if not bitmap >> sub & 1:
            return None
    elif entry & _ZERO:
        return None
    if not host:
        return None
    if host % header.cluster_size:
        raise MalformedStreamError("a cluster that does not begin at one's place", offset=place, advice=_CHECK)
    return int(host + sub * header.unit_size)


def refcount_in(block: bytes, index: int, bits: int) -> int:
    """Return the reference count of the cluster at `index` in a refcount block of counts with so many bits."""
    if bits < 8:
        return block[index * bits // 8] >> index * bits % 8 & (1 << bits) - 1
    size = bits // 8
    return int.from_bytes(block[index * size : (index + 1) * size], "big")
