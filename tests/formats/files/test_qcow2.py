"""qcow2's header, snapshot table and tables, by what QEMU's specification says; real images are in tests/live."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.errors import FormatError, MalformedStreamError, UnsupportedFeatureError
from formats.files.qcow2 import (
    HEADER_SIZE,
    Header,
    Snapshot,
    first_l1_entry,
    parse_header,
    parse_snapshots,
    refcount_in,
    table_at,
    unit_at,
)

HEADER = Header(
    cluster_bits=16,
    size=1 << 30,
    l1_size=16,
    l1_table_offset=0x30000,
    refcount_table_offset=0x10000,
    refcount_table_clusters=1,
    refcount_bits=16,
    nb_snapshots=2,
    snapshots_offset=0x80000,
    extended_l2=False,
)
SUBCLUSTERS = replace(HEADER, extended_l2=True)
ONE = Snapshot("1", "before", 1_795_834_873, 2_851_000_000, 688_952, 1 << 30, 0x90000, 17)
OTHER = Snapshot("12", "nächste", 5, 6, 5 << 32, 2 << 30, 0xA0000, 18)


def header(
    *, version: int = 3, bits: int = 16, crypt: int = 0, features: int = 0, order: int = 4, snapshots: int = 2
) -> bytes:
    start = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", version, 0, 0, bits, 1 << 30, crypt, 16, 0x30000, 0x10000, 1,
                        snapshots, 0x80000)  # fmt: skip
    return start if version == 2 else start + struct.pack(">QQQII", features, 0, 0, order, 104)


def entry(one: Snapshot, *, extra: int = 24) -> bytes:
    small = one.vm_state_size if one.vm_state_size < 1 << 32 else 0
    id_, name = one.id.encode(), one.name.encode()
    more = struct.pack(">QQQ", one.vm_state_size, one.disk_size, 2**64 - 1)[:extra]
    fixed = struct.pack(">QIHHIIQII", one.l1_table_offset, one.l1_size, len(id_), len(name), one.seconds, 7,
                        one.vm_clock, small, len(more))  # fmt: skip
    whole = fixed + more + id_ + name
    return whole + bytes(-len(whole) % 8)


def test_a_header() -> None:
    assert parse_header(header()) == HEADER
    assert parse_header(header(features=1 << 4)) == SUBCLUSTERS
    assert parse_header(header(features=1 << 3)) == HEADER  # another compression, of which no VM state has any
    assert parse_header(header(order=0)).refcount_bits == 1
    # What follows the 72 bytes of version 2 is something else.
    assert parse_header(header(version=2) + b"\xff" * 32) == HEADER
    assert parse_header(header(version=2)) == HEADER


@pytest.mark.parametrize(
    ("data", "kind", "says"),
    [
        (header()[: HEADER_SIZE - 1], MalformedStreamError, "cut short"),
        (header(version=2)[:71], MalformedStreamError, "cut short"),
        (header(version=4), UnsupportedFeatureError, "version 4; 2 and 3 are known"),
        (header(crypt=1), UnsupportedFeatureError, "is encrypted"),
        (header(features=1), UnsupportedFeatureError, "dirty"),
        (header(features=2), UnsupportedFeatureError, "marked as corrupt"),
        (header(features=4), UnsupportedFeatureError, "its data is in another file"),
        (header(features=1 << 40), UnsupportedFeatureError, "features 0x10000000000"),
        (header(bits=8), MalformedStreamError, "cannot be"),
        (header(bits=22), MalformedStreamError, "cannot be"),
        (header(bits=13, features=1 << 4), MalformedStreamError, "cannot be"),
        (header(order=7), MalformedStreamError, "cannot be"),
        (header(snapshots=70000), MalformedStreamError, "cannot be"),
    ],
)
def test_headers_that_are_refused(data: bytes, kind: type[FormatError], says: str) -> None:
    with pytest.raises(kind, match=says):
        parse_header(data)


@given(st.binary(max_size=200))
def test_any_header_is_one_or_an_error(data: bytes) -> None:
    for start in (data, header()[:8] + data):
        with contextlib.suppress(FormatError):
            parse_header(start)


def test_the_snapshots() -> None:
    table = entry(ONE) + entry(OTHER)
    assert parse_snapshots(table + b"what follows", HEADER) == ((ONE, OTHER), len(table))
    # Version 2 has no extra data, and some have only the size of the VM state.
    for extra in (0, 8):
        (one,), _ = parse_snapshots(entry(ONE, extra=extra), replace(HEADER, nb_snapshots=1))
        assert one == ONE
    assert parse_snapshots(b"", replace(HEADER, nb_snapshots=0)) == ((), 0)


@pytest.mark.parametrize("length", [0, 39, 40, 70, len(entry(ONE)), len(entry(ONE) + entry(OTHER)) - 8])
def test_a_table_that_is_cut(length: int) -> None:
    with pytest.raises(MalformedStreamError, match="cut short") as caught:
        parse_snapshots((entry(ONE) + entry(OTHER))[:length], HEADER)
    assert caught.value.offset in (0x80000, 0x80000 + len(entry(ONE)))


@pytest.mark.parametrize(("size", "entry_"), [(0, 0), (1, 1), (512 << 20, 1), ((512 << 20) + 1, 2), (1 << 30, 2)])
def test_the_vm_state_begins_behind_the_disk(size: int, entry_: int) -> None:
    """Source: QEMU `block/qcow2.h` (`size_to_l1`); 64 KiB clusters, 8192 entries of an L2 table."""
    assert first_l1_entry(HEADER, size) == entry_


def test_entries() -> None:
    assert table_at(0) is None
    assert table_at(1 << 63 | 0x50000) == 0x50000
    table = struct.pack(">5Q", 0, 1 << 63 | 0x70000, 0x80001, 0x90000, 0x90200)
    assert [unit_at(HEADER, table, unit, 0) for unit in range(4)] == [None, 0x70000, None, 0x90000]
    with pytest.raises(MalformedStreamError, match="does not begin"):
        unit_at(HEADER, table, 4, 0)
    with pytest.raises(UnsupportedFeatureError, match="compressed"):
        unit_at(HEADER, struct.pack(">Q", 1 << 62 | 0x70000), 0, 0)


def test_subclusters() -> None:
    allocated, zero = 0b101, 0b010 << 32
    table = struct.pack(">4Q", 1 << 63 | 0x70000, zero | allocated, 0, 1 << 32)
    assert SUBCLUSTERS.unit_size == 2048
    assert [unit_at(SUBCLUSTERS, table, unit, 0) for unit in (0, 1, 2, 3, 32)] == [
        0x70000,
        None,
        0x70000 + 2 * 2048,
        None,
        None,
    ]


@given(counts=st.lists(st.integers(0, 2**64 - 1), min_size=8, max_size=8), order=st.integers(0, 6))
def test_reference_counts(counts: list[int], order: int) -> None:
    """Source: QEMU `block/qcow2-refcount.c`: narrow ones from a byte's lowest bits on, others big-endian."""
    bits = 1 << order
    counts = [count % (1 << bits) for count in counts]
    if bits < 8:
        packed = sum(count << bits * index for index, count in enumerate(counts))
        block = packed.to_bytes(8, "little")
    else:
        block = b"".join(count.to_bytes(bits // 8, "big") for count in counts)
    assert [refcount_in(block, index, bits) for index in range(8)] == counts
