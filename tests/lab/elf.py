"""Which shared libraries an ELF file asks for. Source: the System V ABI, chapters 4 and 5 (64-bit, little-endian)."""

from __future__ import annotations

import struct

_MAGIC = b"\x7fELF\x02\x01"  # 64-bit, little-endian
_PROGRAM_HEADERS = struct.Struct("<32xQ14xHH")  # e_phoff, e_phentsize, e_phnum
_SEGMENT = struct.Struct("<I4xQQ8xQ")  # p_type, p_offset, p_vaddr, p_filesz
_DYNAMIC_ENTRY = struct.Struct("<qQ")
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5


def needed_libraries(data: bytes) -> list[str]:
    """Return the names that a program or library is linked with; none for what is no ELF file, or is static."""
    if not data.startswith(_MAGIC):
        return []
    offset, size, count = _PROGRAM_HEADERS.unpack_from(data)
    segments = [_SEGMENT.unpack_from(data, offset + size * index) for index in range(count)]
    names: list[int] = []
    strings = 0
    for kind, at, _, length in segments:
        if kind != _PT_DYNAMIC:
            continue
        for tag, value in _DYNAMIC_ENTRY.iter_unpack(data[at : at + length]):
            if tag == _DT_NULL:
                break
            if tag == _DT_NEEDED:
                names.append(value)
            elif tag == _DT_STRTAB:
                strings = value
    for kind, at, address, length in segments:
        if kind == _PT_LOAD and address <= strings < address + length:
            table = at + strings - address
            return [data[table + name : data.index(b"\0", table + name)].decode() for name in names]
    return []
