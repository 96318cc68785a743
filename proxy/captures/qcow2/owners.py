"""Whose a cluster of a VM state is: only what no other state has may be changed in place.

QEMU leaves references behind: `loadvm` makes the snapshot's VM state the active layer's, too, where nothing ever reads
it again; and what is saved next, if it is shorter, takes the rest of it along. These are no other's state.
Source: QEMU `block/qcow2-snapshot.c` (`qcow2_snapshot_goto`, `qcow2_snapshot_create`).
"""

from typing import TYPE_CHECKING

from formats.errors import MalformedStreamError
from proxy.captures.qcow2.layer import Layer
from proxy.errors import ProxyError

if TYPE_CHECKING:
    from formats.files.qcow2 import Snapshot
    from proxy.captures.qcow2.image import Image


class Owners:
    """Knows which layers of an image refer to the clusters of one snapshot's VM state."""

    def __init__(self, image: "Image", snapshot: "Snapshot") -> None:
        """Read the layers' tables. Raises as `Layer` does."""
        header = image.header
        self._image = image
        size = snapshot.vm_state_size
        self._active = Layer(image, header.l1_table_offset, header.l1_size, header.size, size)
        self._snapshots = [
            (one, Layer(image, one.l1_table_offset, one.l1_size, one.disk_size, size)) for one in image.snapshots
        ]
        self._of = snapshot
        self._given: dict[int, int] = {}

    def check(self, place: int, size: int, offset: int) -> None:
        """See that a stretch of the file, which holds the VM state from `offset` on, is this VM state's alone.

        Raises:
            ProxyError: Another one has it, too.
            MalformedStreamError: The image is not what it should be.
            OSError: The file cannot be read.
        """
        cluster_size = self._image.header.cluster_size
        for cluster in range(place - place % cluster_size, place + size, cluster_size):
            self._check_cluster(cluster, offset + cluster - place)

    def _check_cluster(self, cluster: int, around: int) -> None:
        image = self._image
        start = around - around % image.header.cluster_size
        known = int(self._is_at(self._active, start, cluster))
        for one, layer in self._snapshots:
            if self._is_at(layer, start, cluster):
                known += 1
                if one is not self._of and start < one.vm_state_size:
                    raise ProxyError(
                        f"the cluster at {cluster:#x} of the image belongs to the snapshot {one.name!r}, too, and "
                        "cannot be changed in place; give OUT"
                    )
        count = image.refcount(cluster)
        if count != known:
            raise ProxyError(
                f"the cluster at {cluster:#x} of the image has a reference count of {count}, and {known} "
                f"{'is' if known == 1 else 'are'} known; see what qemu-img check says of it, or give OUT"
            )
        if (
            image.is_metadata(cluster)
            or any(cluster in layer.tables for layer in (self._active, *(layer for _, layer in self._snapshots)))
            or self._given.setdefault(cluster, start) != start
        ):
            raise MalformedStreamError("a cluster of the VM state is used for something else, too", offset=cluster)

    def _is_at(self, layer: Layer, start: int, cluster: int) -> bool:
        """Tell whether a layer has a cluster of the file at an offset of its VM state, in whole or in part."""
        header = self._image.header
        places = (layer.place(offset) for offset in range(start, start + header.cluster_size, header.unit_size))
        return any(place is not None and place - place % header.cluster_size == cluster for place in places)
