"""The records of `vfio` sections: the state of passed-through devices whose drivers migrate it.

A section is named `PATH/vfio` after its device, as `0000:00:02.0/vfio`. Its parts are iterable. The device's
configuration comes once more under the same name and section id, as a device section among the others, which the vmdesc
describes as one buffer. With multifd device state, the main channel has the ends of the parts only.
Source: QEMU 10.0 `hw/vfio/migration.c` (`vfio_save_setup`, `vfio_save_iterate`, `vfio_save_complete_precopy`,
`vfio_save_state`, `vfio_load_state`), `hw/vfio/migration-multifd.c` (`vfio_multifd_emit_dummy_eos`).
"""

from struct import Struct
from typing import ClassVar, Final

from formats.iterable.record_reader import IterableReader, Record

END_OF_STATE: Final = 0xFFFFFFFF_EF100001
DEV_SETUP_STATE: Final = 0xFFFFFFFF_EF100003
DEV_DATA_STATE: Final = 0xFFFFFFFF_EF100004
DEV_INIT_DATA_SENT: Final = 0xFFFFFFFF_EF100005
"""It ends its section, as `END_OF_STATE` does; with the capability switchover-ack."""

_BE64: Final = Struct(">Q")
_FLAG_AND_SIZE: Final = Struct(">QQ")


class VfioReader(IterableReader):
    """Steps through `vfio` sections: be64 flag and, after DEV_DATA_STATE, be64 length and so many bytes."""

    idstr: ClassVar[str] = "vfio"

    def record(self, data: memoryview, position: int, offset: int) -> Record | None:
        """Read one record header; see `IterableReader.record`."""
        if len(data) - position < _BE64.size:
            return None
        (flag,) = _BE64.unpack_from(data, position)
        if flag == DEV_DATA_STATE:
            if len(data) - position < _FLAG_AND_SIZE.size:
                return None
            return Record(_FLAG_AND_SIZE.size, _FLAG_AND_SIZE.unpack_from(data, position)[1], False)
        if flag not in (END_OF_STATE, DEV_SETUP_STATE, DEV_INIT_DATA_SENT):
            raise self.malformed(f"vfio record with flag {flag:#x}, which no QEMU sends here", offset)
        return Record(_BE64.size, 0, flag != DEV_SETUP_STATE)
