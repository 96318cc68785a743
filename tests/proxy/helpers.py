"""What the tests of proxy/ share: recorded streams, cut and changed; judges; and runs of the rewriter."""

from __future__ import annotations

import io
import logging
import lzma
import re
import struct
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from formats.arm.processor_sets import parse_processors
from formats.arm.register_list import RegisterList
from formats.arm.sysreg import MIDR_EL1, parse_register
from formats.frame.event import NEED_DATA
from formats.frame.records import RecordType
from formats.stream.events import Configuration, SectionBegin, SectionFooter
from formats.stream.parser import StreamParser
from formats.vmstate.device_state import DeviceState
from proxy.captures.offline import read_vcpus
from proxy.hosts.learning import learn_profile
from proxy.hosts.profile import HostProfile
from proxy.judging.judge import Judge
from proxy.log import message_of
from proxy.policy.acceptance import Acceptance
from proxy.policy.policy import Mode, Policy
from proxy.policy.rules import Rule, RuleAction, Rules
from proxy.policy.whitelist import Pairing
from tests.captures import CAPTURES, read_manifest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from formats.stream.events import AnyEvent
    from proxy.judging.trial import Trial
    from proxy.rewriter.rewriter import Rewriter

ROOT = CAPTURES.parent
NAMES = sorted(one.name for one in read_manifest() if one.saved_on_kvm)

R0, R3 = 0x411FD070, 0x411FD073
"""The processor ids of the two hosts that differ in nothing else."""

NEWER, OLDER = "kvm-trixie-n1", "kvm-bookworm-n1"
"""One processor under two kernels, of which the newer one lists more registers."""

NEWER_SWAPPED = [*(f"CCSIDR_EL1[{index}]" for index in range(3)), "ID_AA64DFR0_EL1", "CLIDR_EL1"]
NEWER_DROPPED = [
    *(f"CCSIDR_EL1[{index}]" for index in range(3, 14)),
    *("TCR2_EL1", "PIRE0_EL1", "PIR_EL1", "CNTPCT_EL0", "CNTP_CTL_EL0", "CNTP_CVAL_EL0"),
]
"""What becomes of the newer one's registers on the way to the older one, in the order of the ids."""

EVERYTHING = Acceptance(None, None)
"""Any loss, and any erratum."""

REVIDR_EL1 = 0x603000000013C006
PSCI_VERSION = 0x6030000000140000
OPEN_RETURN_PATH = bytes.fromhex("0800010000")
SHUT_OK = struct.pack(">HHI", 1, 4, 0)
SHUT_FAILED = struct.pack(">HHI", 1, 4, 1)
PONG = struct.pack(">HHI", 2, 4, 1)


@cache
def capture(name: str) -> bytes:
    """Return a recorded stream."""
    return lzma.decompress((CAPTURES / f"{name}.xz").read_bytes())


@cache
def events(stream: bytes) -> list[AnyEvent]:
    """Return the events of a whole stream; their bytes are not to be relied on."""
    parser = StreamParser()
    parser.feed(stream)
    found = []
    while (event := parser.next_event()) is not NEED_DATA:
        found.append(event)
    return found


def device_state(stream: bytes) -> DeviceState:
    """Return the only device state of a stream."""
    (state,) = (event for event in events(stream) if isinstance(event, DeviceState))
    return state


@cache
def short(name: str) -> bytes:
    """Return a recorded stream without its RAM parts."""
    return shortened(capture(name))


def shortened(stream: bytes) -> bytes:
    """Return a stream without its RAM parts: the setup list, the end, and the devices are left."""
    kept = bytearray()
    dropping = False
    for event in events(stream):
        dropping = event.type is RecordType.SECTION_PART if isinstance(event, SectionBegin) else dropping
        if not dropping:
            kept += stream[event.offset : event.offset + len(event.raw)]
        dropping = dropping and not isinstance(event, SectionFooter)
    return bytes(kept)


@cache
def live(stream: bytes) -> bytes:
    """Return a stream as a source with a return path sends it."""
    (at,) = (event.offset + len(event.raw) for event in events(stream) if isinstance(event, Configuration))
    return stream[:at] + OPEN_RETURN_PATH + stream[at:]


def without_vmdesc(stream: bytes) -> bytes:
    """Return a stream as a source with suppress-vmdesc=on sends it: it ends with the end of file."""
    state = device_state(stream)
    return stream[: state.offset + state.sections[-1].end + 1]


def value_at(stream: bytes, register: int, vcpu: int = 0) -> int:
    """Return where a register's value stands, found without the code under test."""
    header = b"\x03cpu" + struct.pack(">II", vcpu, 22)
    body = stream.rindex(header) + len(header)
    (count,) = struct.unpack_from(">I", stream, body + 568)
    ids = struct.unpack_from(f">{count}Q", stream, body + 572)
    return int(body + 572 + 8 * count + 8 * ids.index(register))


def with_value(stream: bytes, register: int, value: int, vcpu: int = 0) -> bytes:
    """Return the stream with another value of a register."""
    at = value_at(stream, register, vcpu)
    return stream[:at] + value.to_bytes(8, "big") + stream[at + 8 :]


def without(stream: bytes, removed: Collection[int], vcpu: int = 0) -> bytes:
    """Return the stream without some registers of a vCPU, and with the vmdesc, if it has one, that goes with them."""
    header = b"\x03cpu" + struct.pack(">II", vcpu, 22)
    at = stream.rindex(header) + len(header) + 568
    (count,) = struct.unpack_from(">I", stream, at)
    numbers = struct.unpack_from(f">{2 * count}Q", stream, at + 4)
    kept = [index for index in range(count) if numbers[index] not in removed]
    left = [numbers[index] for index in kept] + [numbers[count + index] for index in kept]
    rest = stream[at + 4 + 16 * count :]
    text = re.search(rb"\x06.{4}(\{.*\})\Z", rest, re.DOTALL)
    if text is not None:
        arrays = re.compile(
            rb'("name": "cpu", "instance_id": %d, .*?"cpreg_vmstate_indexes", "array_len": )\d+'
            rb'(.*?"cpreg_vmstate_values", "array_len": )\d+' % vcpu,
            re.DOTALL,
        )
        changed, times = arrays.subn(rb"\g<1>%d\g<2>%d" % (len(kept), len(kept)), text[1])
        assert times == 1
        rest = rest[: text.start()] + b"\x06" + struct.pack(">I", len(changed)) + changed
    return stream[:at] + struct.pack(f">I{len(left)}Q", len(kept), *left) + rest


def value(stream: bytes, register: int, vcpu: int = 0) -> int:
    """Return the value of a register."""
    at = value_at(stream, register, vcpu)
    return int.from_bytes(stream[at : at + 8], "big")


def differences(one: bytes, other: bytes) -> list[int]:
    """Return the offsets at which two streams of one length differ."""
    assert len(one) == len(other)
    if one == other:
        return []
    return [at for at, (left, right) in enumerate(zip(one, other, strict=True)) if left != right]


@cache
def profile(name: str) -> HostProfile:
    """Return the profile learned from a recorded stream."""
    return learn_profile(read_vcpus(io.BytesIO(capture(name))), name)


def judge(
    *allowed: int | None,
    host: HostProfile | None = None,
    mode: Mode = Mode.REPAIR,
    swap: Mapping[int, str] = MappingProxyType({MIDR_EL1: "default"}),
    drop: Mapping[int, str] = MappingProxyType({}),
    drop_harmless: bool = True,
    trial: Trial | None = None,
    accept: Acceptance = EVERYTHING,
) -> Judge:
    """Return a judge of a repair on the r3 host that vouches for the processor ids `allowed`."""
    policy = Policy(tuple(map(pairing, allowed)), rules(swap, drop), mode, drop_harmless, accept=accept)
    return Judge(policy, profile("kvm-trixie-a57r3") if host is None else host, trial)


def pairing(midr: int | None, where: str = "whitelist") -> Pairing:
    """Return a whitelist entry that lets a processor's guests come to any destination."""
    return Pairing(where, (None if midr is None else parse_processors(f"{midr:#x}"),))


def rules(swap: Mapping[int, str], drop: Mapping[int, str] = MappingProxyType({})) -> Rules:
    """Return rules for whole registers, each with where it stands."""
    found = {register: (Rule(where, RuleAction.SWAP),) for register, where in swap.items()}
    return Rules(found | {register: (Rule(where, RuleAction.DROP),) for register, where in drop.items()})


def downgrade(**options: Any) -> Judge:  # noqa: ANN401
    """Return a judge that lets the newer one's guest go to the older one."""
    swap = {parse_register(name): "listed" for name in NEWER_SWAPPED}
    return judge(host=profile(OLDER), **{"swap": swap, **options})


def downgraded(stream: bytes) -> bytes:
    """Return the newer one's stream, or one made of it, as the older one takes it."""
    for name in NEWER_SWAPPED:
        stream = with_value(stream, parse_register(name), profile(OLDER).values[parse_register(name)])
    return without(stream, {parse_register(name) for name in NEWER_DROPPED})


def observer() -> Judge:
    """Return a judge that only watches, and refuses all that it can."""
    return judge(mode=Mode.OBSERVE, swap={})


def registers(values: Mapping[int, int], vcpu: int = 0) -> RegisterList:
    """Return the registers of a made-up vCPU."""
    ids = sorted(values)
    listed = struct.pack(f">I{2 * len(ids)}Q", len(ids), *ids, *(values[id_] for id_ in ids))
    return RegisterList(bytearray(listed), 0, vcpu)


def midr_only(midr: int = R3) -> HostProfile:
    """Return the partial profile that --midr makes."""
    return HostProfile("--midr", {MIDR_EL1: midr})


def cut(stream: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    """Yield the stream in pieces that end at the cuts."""
    start = 0
    for end in sorted({*cuts, len(stream)}):
        if start < end <= len(stream):
            yield stream[start:end]
            start = end


def feed(rewriter: Rewriter, piece: bytes) -> bytes:
    """Feed a piece as the relay does, from a buffer that is used again, and return what may go on."""
    buffer = bytearray(piece)
    out = b"".join(bytes(raw) for raw in rewriter.feed(memoryview(buffer)))
    buffer[:] = b"\xff" * len(buffer)
    return out


def passed(rewriter: Rewriter, pieces: Iterable[bytes]) -> bytes:
    """Feed all the pieces and the end, and return what may go on."""
    out = b"".join([feed(rewriter, piece) for piece in pieces])
    return out + b"".join(bytes(raw) for raw in rewriter.end())


class _Into(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__()
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(message_of(record))


def log_into(said: list[str]) -> logging.Logger:
    """Return a log whose lines are kept."""
    log = logging.Logger("test")
    log.addHandler(_Into(said))
    return log
