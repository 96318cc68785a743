"""Taking registers out of a device state: ids, values and count go, and so do they in the vmdesc.

Where nothing is removed, nothing is rebuilt: what stands between the register lists is copied as it is.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from formats.vmstate.vmdesc_counts import vmdesc_with_counts

if TYPE_CHECKING:
    from formats.arm.register_list import RegisterList
    from formats.frame.event import Raw
    from formats.vmstate.device_state import DeviceState


def without_registers(
    state: "DeviceState", removed: "Iterable[tuple[RegisterList, Collection[int]]]", counts: Mapping[int, int]
) -> bytes:
    """Return the bytes of a device state without some of its registers.

    Args:
        state: The device state; its vCPUs may have been patched.
        removed: vCPUs of the state, in the order of the wire, each with the ids that go.
        counts: How many registers are left, by vCPU, for the vmdesc.

    Raises:
        UnlocatableSectionError: The vmdesc does not have the arrays.
    """
    pieces: list[Raw] = []
    position = 0
    with memoryview(state.held) as held:
        for registers, ids in removed:
            start, end = registers.span
            pieces += held[position:start], registers.without(ids)
            position = end
        vmdesc = len(held) if state.vmdesc is None else state.sections[-1].end + 1
        pieces.append(held[position:vmdesc])
        if state.vmdesc is not None:
            pieces.append(vmdesc_with_counts(bytes(held[vmdesc:]), counts, state.offset + vmdesc))
        return b"".join(pieces)
