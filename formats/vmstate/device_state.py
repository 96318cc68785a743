"""The device state as an event of the stream: all its bytes, and the sections that were located in them."""

from typing import TYPE_CHECKING

from formats.frame.event import Event

if TYPE_CHECKING:
    from formats.vmstate.locators import DeviceSection
    from formats.vmstate.vmdesc import Vmdesc


class DeviceState(Event, frozen=True):
    """All the device sections in a row, located, with the end of file and the vmdesc that follow them.

    Attributes:
        held: The same bytes as `raw`, to be patched in place; the sections' positions count from its start.
        sections: The sections in the order of the wire.
        vmdesc: The description that they were located by; None when the stream has none, and footers located them.
        early: True for sections before the iterable ones; no end of file follows.
        packaged: True for those of a postcopy migration, in its package; no end of file follows, and no vmdesc.
    """

    held: bytearray
    sections: "tuple[DeviceSection, ...]"
    vmdesc: "Vmdesc | None"
    early: bool
    packaged: bool = False
