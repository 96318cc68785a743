"""The shapes that a migration can take: QEMU's capabilities, parameters and machine properties, each as a case.

A shape is data: what to turn on, and where one has to be told when to act, a coroutine. `tests.lab.crossing` runs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.lab.guest import x86_counter_guest
from tests.lab.shape import SLOW, Shape, Sides
from tests.lab.shape_acts import (
    COPIED_DISK,
    NULL_DISK,
    add_bitmap,
    bitmap_arrived,
    colo_is_over,
    connections,
    counted,
    disk_arrived,
    go_on_before_switchover,
    go_over_to_postcopy,
    memory_stayed,
    not_sent,
    resend_then_hurry,
    resume,
    sent,
    throttle_then_hurry,
    touched,
    went_postcopy,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping


def _multifd(name: str, parameters: Mapping[str, Any] | None = None) -> Shape:
    return Shape(
        name,
        capabilities={"multifd": True},
        parameters={"multifd-channels": 2, **(parameters or {})},
        pages=2000,
        check=connections(3),
    )


def _postcopy(
    name: str, *capabilities: str, drive: Callable[[Sides], Awaitable[None]] | None = None, known: bool = False
) -> Shape:
    return Shape(
        name,
        capabilities={"postcopy-ram": True, **dict.fromkeys(capabilities, True)},
        source_parameters={"max-bandwidth": SLOW} if drive else {},
        pages=4000,
        drive=drive,
        check=went_postcopy if drive else None,
        known=known,
    )


SHAPES = (
    Shape("plain, with return-path", check=not_sent(b"configuration/capabilities")),
    Shape("without return-path", return_path=False),
    Shape("without return-path, allowed", return_path=False, options=("--allow-no-return-path",)),
    Shape("4 vCPUs", smp=4),
    Shape("oldest machine type", machine="oldest"),
    Shape("newest machine type", machine="newest"),
    Shape("send-configuration=off", extra=("-global", "migration.send-configuration=off"), check=not_sent(b"virt-5.2")),
    Shape("send-section-footer=off", extra=("-global", "migration.send-section-footer=off")),
    Shape("suppress-vmdesc=on", properties=",suppress-vmdesc=on", check=not_sent(b'"page_size"')),
    Shape(
        "suppress-vmdesc=on, send-section-footer=off",
        properties=",suppress-vmdesc=on",
        extra=("-global", "migration.send-section-footer=off"),
    ),
    Shape(
        "xbzrle",
        capabilities={"xbzrle": True},
        source_parameters={"max-bandwidth": SLOW},
        pages=1000,
        dirty=True,
        drive=resend_then_hurry,
        check=counted("xbzrle-cache", "pages"),
    ),
    Shape("compress", capabilities={"compress": True}, check=counted("compression", "pages")),
    Shape(
        "auto-converge",
        capabilities={"auto-converge": True},
        source_parameters={"max-bandwidth": SLOW},
        pages=1000,
        dirty=True,
        drive=throttle_then_hurry,
    ),
    Shape("events", capabilities={"events": True}),
    Shape("release-ram", capabilities={"release-ram": True}),
    Shape("late-block-activate", capabilities={"late-block-activate": True}, extra=NULL_DISK),
    Shape(
        "zero-blocks, block",
        source_capabilities={"block": True, "zero-blocks": True},
        extra=COPIED_DISK,
        check=disk_arrived,
    ),
    Shape(
        "dirty-bitmaps",
        capabilities={"dirty-bitmaps": True},
        extra=NULL_DISK,
        prepare=add_bitmap,
        check=bitmap_arrived,
    ),
    Shape(
        "validate-uuid",
        capabilities={"validate-uuid": True},
        extra=("-uuid", "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"),
        check=sent(b"configuration/uuid"),
    ),
    Shape(
        "x-ignore-shared",
        capabilities={"x-ignore-shared": True},
        properties=",memory-backend=ram",
        extra=("-object", "memory-backend-file,id=ram,size=64M,share=on,mem-path={shared}/ram"),
        check=memory_stayed,
    ),
    Shape(
        "pause-before-switchover",
        capabilities={"pause-before-switchover": True},
        drive=go_on_before_switchover,
    ),
    Shape("switchover-ack", capabilities={"switchover-ack": True, "return-path": True}),
    Shape("dirty-limit", capabilities={"dirty-limit": True}),
    Shape("zero-page-detection=none", parameters={"zero-page-detection": "none"}),
    Shape("zero-page-detection=legacy", parameters={"zero-page-detection": "legacy"}),
    Shape("zero-page-detection=multifd", parameters={"zero-page-detection": "multifd"}),
    _multifd("multifd"),
    _multifd("multifd, zlib", {"multifd-compression": "zlib"}),
    _multifd("multifd, zstd", {"multifd-compression": "zstd"}),
    _multifd("multifd, zero-page-detection=multifd", {"zero-page-detection": "multifd"}),
    Shape(
        "multifd, zero-copy-send",
        capabilities={"multifd": True},
        source_capabilities={"zero-copy-send": True},
        parameters={"multifd-channels": 2},
        pages=2000,
        check=connections(3),
    ),
    _postcopy("postcopy-ram, not gone over to"),
    _postcopy("postcopy-ram", drive=go_over_to_postcopy),
    _postcopy("postcopy-ram, postcopy-preempt", "postcopy-preempt", drive=go_over_to_postcopy),
    _postcopy("postcopy-ram, postcopy-blocktime", "postcopy-blocktime", drive=go_over_to_postcopy),
    _postcopy("postcopy-ram, with --source", drive=go_over_to_postcopy, known=True),
    _postcopy("postcopy-ram, release-ram, with --source", "release-ram", drive=go_over_to_postcopy, known=True),
    Shape(
        "x-colo",
        capabilities={"x-colo": True, "return-path": True},
        source_parameters={"x-checkpoint-delay": 500},
        drive=colo_is_over,
    ),
    Shape("rdma", scheme="rdma"),
    Shape("rdma-pin-all, over tcp", capabilities={"rdma-pin-all": True}),
    Shape("mode=cpr-reboot", parameters={"mode": "cpr-reboot"}, arrive=resume),
    Shape("mapped-ram, to a socket", capabilities={"mapped-ram": True}),
    Shape(
        "mapped-ram, to a file",
        capabilities={"mapped-ram": True},
        return_path=False,
        via="file:{path}",
        check=touched,
    ),
    Shape("exec: to a file", return_path=False, via="exec:cat {redirection} '{path}'", check=touched),
    Shape(
        "background-snapshot",
        source_capabilities={"background-snapshot": True},
        return_path=False,
        via="exec:cat {redirection} '{path}'",
        check=touched,
    ),
    Shape("x86_64 guest on q35", machine="pc-q35-5.2", bios=x86_counter_guest(), arm64=False),
    Shape(
        "x86_64 guest on q35, multifd",
        capabilities={"multifd": True},
        parameters={"multifd-channels": 2},
        machine="pc-q35-5.2",
        bios=x86_counter_guest(),
        arm64=False,
        check=connections(3),
    ),
)
"""All cases, in the table's order."""
