"""libvirt's save files (`virsh save`, managed save): a header, the domain's XML, and QEMU's stream, packed or not.

Source: libvirt `src/qemu/qemu_saveimage.h` (`virQEMUSaveHeader`), `qemu_saveimage.c` (`qemuSaveImageReadHeader`,
`virQEMUSaveDataWrite`) and `qemu_saveimage_format.h`. Numbers are in the byte order of the host that wrote the file; a
version above 2 tells that it was another one.
"""

from dataclasses import dataclass
from typing import Final

from construct import Bytes, Int32ub, Int32ul, Struct

from formats.errors import MalformedStreamError, UnsupportedFeatureError

MAGIC: Final = b"LibvirtQemudSave"
PARTIAL_MAGIC: Final = b"LibvirtQemudPart"
FORMATS: Final = ("raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse")
"""How the stream is packed, by the header's number; `sparse` (libvirt 11.2) is a mapped-ram stream, not packed."""

_VERSION: Final = 2
_UNUSED: Final = 14
_LONGEST_XML: Final = 64 << 20
_SCHEMAS: Final = tuple(
    Struct(
        "magic" / Bytes(len(MAGIC)),
        "version" / number,
        "data_len" / number,
        "was_running" / number,
        "format" / number,
        "cookie_offset" / number,
        "unused" / number[_UNUSED],
    )
    for number in (Int32ul, Int32ub)
)
HEADER_SIZE: Final[int] = _SCHEMAS[0].sizeof()
"""92 bytes."""

_REFUSED: Final = {
    "lzop": "unpack it with lzop -dc, or set save_image_format to another format",
}


@dataclass(frozen=True, slots=True)
class SaveHeader:
    """What the header says.

    Attributes:
        format: How the stream is packed: `raw`, `gzip`, `bzip2`, `xz`, `zstd`, or `sparse`, which is not.
        data_length: Bytes of XML, cookie and padding between the header and the stream.
        was_running: Whether the guest ran when it was saved.
    """

    format: str
    data_length: int
    was_running: bool


def is_save_file(start: bytes) -> bool:
    """Tell whether a file that begins so is a save file, or was to become one."""
    return start.startswith((MAGIC, PARTIAL_MAGIC))


def parse_header(header: bytes) -> SaveHeader:
    """Parse the first 92 bytes of a save file.

    Raises:
        MalformedStreamError: It is cut short, of another version, or says what cannot be.
        UnsupportedFeatureError: The file is not complete, or packed in a way that is not read.
    """
    if header.startswith(PARTIAL_MAGIC):
        raise UnsupportedFeatureError(
            "this libvirt save file is not complete: the save broke off", offset=0, advice="save the guest anew"
        )
    if len(header) < HEADER_SIZE:
        raise MalformedStreamError("the header of this libvirt save file is cut short", offset=len(header))
    found = next((one for one in (schema.parse(header) for schema in _SCHEMAS) if one.version <= _VERSION), None)
    if found is None:
        raise MalformedStreamError(
            f"a libvirt save file of version {_SCHEMAS[0].parse(header).version}; {_VERSION} is known", offset=16
        )
    if not 0 < found.data_len <= _LONGEST_XML:
        raise MalformedStreamError(f"a libvirt save file with {found.data_len} bytes of XML", offset=20)
    if found.format >= len(FORMATS):
        raise UnsupportedFeatureError(f"a libvirt save file of format {found.format}, which is not known", offset=28)
    name = FORMATS[found.format] if found.version == _VERSION else "raw"
    if name in _REFUSED:
        raise UnsupportedFeatureError(
            f"libvirt save files of format {name} are not supported", offset=28, advice=_REFUSED[name]
        )
    return SaveHeader(name, found.data_len, bool(found.was_running))
