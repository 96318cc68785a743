"""Reading a whole stream from its bytes: its events, its device sections field by field, its vCPUs by register name.

`chunks` are the stream's bytes in pieces of any size, in order: a file's, a socket's, or one `bytes` in a list. Nothing
is opened or waited for here. A stretch of memory is never held; the device state is, up to `device_state_limit` bytes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from formats.arm.sysreg import describe
from formats.frame.event import NEED_DATA, Raw
from formats.limits import DEFAULT_DEVICE_STATE_LIMIT
from formats.stream.events import AnyEvent
from formats.stream.parser import StreamParser
from formats.vmstate.device_state import DeviceState
from formats.vmstate.fields import DecodedField, decode_section
from formats.vmstate.vcpus import open_vcpus


class Skipped(NamedTuple):
    """Bytes that were stepped over.

    Attributes:
        length: How many; 0 where the next ones have to be read.
        zeroes: Whether they are known to be zero.
    """

    length: int
    zeroes: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A device section.

    Attributes:
        name: Its idstr, such as `cpu` or `0000:00:01.0/virtio-net`.
        instance_id: Which of several of that idstr.
        version_id: The version of its layout.
        offset: Where its type byte stands, in bytes from the stream's start; in a postcopy package, too.
        length: Bytes, header and footer included.
        fields: What it holds, in the order of the wire, as the stream's vmdesc describes it. Header, fields and footer
            fill it without a gap. Without a vmdesc it is one field of bytes, but for an arm64 `cpu`.
    """

    name: str
    instance_id: int
    version_id: int
    offset: int
    length: int
    fields: tuple[DecodedField, ...]


@dataclass(frozen=True, slots=True)
class Vcpu:
    """An arm64 vCPU.

    Attributes:
        index: Its index, which is the instance id of its `cpu` section.
        registers: The values of its system registers by name, in the order of the wire, as unsigned 64-bit numbers.
            A register without a known name stands by its KVM id in hexadecimal.
    """

    index: int
    registers: Mapping[str, int]


def read_events(
    chunks: Iterable[Raw],
    *,
    device_state_limit: int = DEFAULT_DEVICE_STATE_LIMIT,
    skip: Callable[[int], Skipped] | None = None,
    take_trailing: bool = False,
) -> Iterator[AnyEvent]:
    """Yield the events of a stream. Every byte is in the `raw` of just one, in order; it is good until the next event.

    Args:
        chunks: The stream's bytes.
        device_state_limit: Bytes of device state held at most.
        skip: Steps over at most so many bytes of the input, and tells how many; the next chunk is what follows them.
            For files that can be sought in. None reads mapped pages, and all that follows the end, too.
        take_trailing: Whether more may follow the end of the stream, as in a file that is longer than it.

    Raises:
        MalformedStreamError: The bytes are no migration stream, or end before its end. Behind a postcopy package, where
            nothing is looked at, an end that comes too early is not noticed.
        RefusedStreamError: Its sections cannot be located for certain, or it uses what cannot be read.

    Source: QEMU `migration/savevm.c` (`qemu_loadvm_state_main`).
    """
    parser = StreamParser(device_state_limit=device_state_limit, take_mapped_ram=True, take_trailing=take_trailing)
    for chunk in chain((chunk for chunk in chunks if len(chunk)), (b"",)):
        parser.feed(chunk)
        while (event := parser.next_event()) is not NEED_DATA:
            yield event
        if skip is not None and (skipped := skip(parser.skippable)).length:
            yield parser.skip(skipped.length, zeroes=skipped.zeroes)


def read_sections(chunks: Iterable[Raw], *, device_state_limit: int = DEFAULT_DEVICE_STATE_LIMIT) -> Iterator[Section]:
    """Yield the device sections of a stream, field by field; `ram` and other iterable sections are none.

    Raises as `read_events` does.

    Source: QEMU `migration/vmstate.c` (`vmstate_save_state_v`); the vmdesc is `migration/savevm.c`'s.
    """
    for event in read_events(chunks, device_state_limit=device_state_limit):
        if isinstance(event, DeviceState):
            for section in event.sections:
                yield Section(
                    name=section.name,
                    instance_id=section.instance_id,
                    version_id=section.version_id,
                    offset=event.offset + section.start,
                    length=section.end - section.start,
                    fields=tuple(decode_section(event.held, section)),
                )


def read_vcpus(chunks: Iterable[Raw], *, device_state_limit: int = DEFAULT_DEVICE_STATE_LIMIT) -> list[Vcpu]:
    """Return the arm64 vCPUs of a stream; none for a guest of another architecture.

    Raises as `read_events` does, and UnknownCpuVersionError for an arm64 `cpu` section of another layout than
    version 22's.

    Source: QEMU `target/arm/machine.c` (`vmstate_arm_cpu`); the ids are those of KVM_GET_REG_LIST.
    """
    return [
        Vcpu(registers.vcpu, {describe(register).name: value for register, value in registers.items()})
        for event in read_events(chunks, device_state_limit=device_state_limit)
        if isinstance(event, DeviceState)
        for registers in open_vcpus(event)
    ]
