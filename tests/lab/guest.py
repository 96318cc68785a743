"""Bare-metal guests for `-M virt`: flat images, loaded at LOAD_ADDRESS, entered there at EL1 with the MMU off.

One is firmware for x86 machines.

RAM of the virt machine starts at 0x40000000. QEMU keeps up to 1 MiB of device tree at its start, so that the image
goes above it (a lower address fails with "Some ROM regions are overlapping").
"""

from __future__ import annotations

from tests.lab.a64 import MIDR_EL1, ZERO, Program

LOAD_ADDRESS = 0x4020_0000
"""Where the image goes, and where vCPU 0 starts."""

COUNTER_ADDRESS = 0x4030_0000
"""A 64-bit counter that the guest increments for ever."""

MIDR_ADDRESS = COUNTER_ADDRESS + 8
"""64 bits: MIDR_EL1 as the guest last read it, refreshed at each lap."""

TOUCHED_ADDRESS = 0x4040_0000
"""The first of the pages that `touch_pages` fills."""

X86_COUNTER_ADDRESS = 0x1_0000
"""Where `x86_counter_guest` counts."""

E1000_ARGS = ("-device", "e1000,addr=1,romfile=,mac=52:54:00:12:34:56")
"""QEMU arguments that `hostile_guest` needs, on both sides of a migration."""

HOSTILE_PAYLOAD_LIMIT = 10240 * 4
"""Most bytes that `hostile_guest` can place: the e1000 packet buffer that QEMU lets a guest write."""

_PAGE = 4096
_PL011 = 0x0900_0000
_PL011_CONTROL = 0x30
_PL011_ENABLE = 0x301  # UARTEN, TXE, RXE
_ECAM = 0x40_1000_0000  # VIRT_HIGH_PCIE_ECAM of hw/arm/virt.c: the default, without highmem=off
_E1000_CONFIG = _ECAM + (1 << 15)  # bus 0, device 1, function 0
_PCI_COMMAND = 0x04
_PCI_BAR0 = 0x10
_PCI_MEMORY_SPACE = 2
_MMIO_WINDOW = 0x1000_0000  # VIRT_PCIE_MMIO
_E1000_PACKET_BUFFER = 0x1_0000  # PBM of hw/net/e1000_regs.h, in bytes from BAR0
_PAYLOAD_ADDRESS = LOAD_ADDRESS + _PAGE  # the table follows the code in the image


def counter_guest(touch_pages: int = 0, lap_bits: int = 23, *, dirty: bool = False) -> bytes:
    """Make a guest that counts for ever.

    It stops for good when the counter in RAM and its copy in a register disagree, so that a counter that goes on
    after a migration says that RAM and CPU state arrived and belong together.

    Args:
        touch_pages: 4 KiB pages to make non-zero first, each different, from TOUCHED_ADDRESS on.
        lap_bits: one character goes to the PL011 each 2**lap_bits increments.
        dirty: write the counter into each of these pages at every lap, so that a migration has to send them again.
    """
    program = Program()
    _touch(program, touch_pages)
    _count_for_ever(program, lap_bits, touch_pages if dirty else 0)
    return program.assemble()


def idle_guest() -> bytes:
    """Make a guest that does nothing, and leaves the machine's processors to others."""
    program = Program()
    program.label("idle")
    program.wfi()
    program.b("idle")
    return program.assemble()


def hostile_guest(payload: bytes, lap_bits: int = 23) -> bytes:
    """Make a guest that places payload in the vmstate of a device, byte for byte, then counts as `counter_guest` does.

    Needs E1000_ARGS. The bytes go to the packet buffer memory of the e1000, which QEMU's `e1000/full_mac_state`
    subsection holds as a be32 array (hw/net/e1000.c: mac_writeops, vmstate_e1000_full_mac_state). The image in RAM
    has them in the other byte order, so that they show up in a stream once, in the device's section.

    Args:
        payload: up to HOSTILE_PAYLOAD_LIMIT bytes; zeroes fill the last word.
        lap_bits: as for `counter_guest`.

    Raises:
        ValueError: the payload is too long.
    """
    if len(payload) > HOSTILE_PAYLOAD_LIMIT:
        raise ValueError(f"payload of {len(payload)} bytes, the device holds {HOSTILE_PAYLOAD_LIMIT}")
    words = [int.from_bytes(payload[at : at + 4].ljust(4, b"\0"), "big") for at in range(0, len(payload), 4)]
    program = Program()
    _map_e1000(program)
    _copy_words(program, _PAYLOAD_ADDRESS, _MMIO_WINDOW + _E1000_PACKET_BUFFER, len(words))
    _count_for_ever(program, lap_bits)
    code = program.assemble()
    assert len(code) <= _PAYLOAD_ADDRESS - LOAD_ADDRESS
    return code.ljust(_PAYLOAD_ADDRESS - LOAD_ADDRESS, b"\0") + b"".join(w.to_bytes(4, "little") for w in words)


def x86_counter_guest() -> bytes:
    """Make a guest for x86 machines that counts for ever at X86_COUNTER_ADDRESS: firmware of 64 KiB, for -bios.

    It stays in real mode, from the reset vector on (Intel SDM volume 3, 10.1.4), and stops for good when the counter
    in RAM (32 bits) and its copy in a register disagree.
    """
    setup = bytes.fromhex("fa b80010 8ed8 6631c0 66a30000")  # cli; ds = 0x1000; eax = 0; [0] = eax
    count = bytes.fromhex(
        "663b060000"  # count: cmp eax, [0]
        "750d"  # jne broken
        "6640"  # inc eax
        "66a30000"  # mov [0], eax
        "b9e803"  # mov cx, 1000: 32 bits have to do for hours
        "e2fe"  # loop to itself
        "ebec"  # jmp count
        "f4"  # broken: hlt
        "ebfd"  # jmp broken
    )
    reset = bytes.fromhex("e90d00")  # jmp from 0xfff0 to 0x0000 of the segment
    code = (setup + count).ljust(0xFFF0, b"\xf4")
    return (code + reset).ljust(0x1_0000, b"\xf4")


def _touch(program: Program, pages: int) -> None:
    if not pages:
        return
    address, left = 0, 1
    program.mov(address, TOUCHED_ADDRESS)
    program.mov(left, pages)
    program.label("touch")
    program.str_(address, address)  # the page's own address: not zero, and different on every page
    program.add(address, address, _PAGE)
    program.subs(left, left, 1)
    program.cbnz(left, "touch")


def _map_e1000(program: Program) -> None:
    config, value = 0, 1
    program.mov(config, _E1000_CONFIG)
    program.mov(value, _MMIO_WINDOW)
    program.str_w(value, config, _PCI_BAR0)
    program.mov(value, _PCI_MEMORY_SPACE)
    program.str_w(value, config, _PCI_COMMAND)


def _copy_words(program: Program, source: int, destination: int, words: int) -> None:
    if not words:
        return
    read, write, left, value = 0, 1, 2, 3
    program.mov(read, source)
    program.mov(write, destination)
    program.mov(left, words)
    program.label("copy")
    program.ldr_w(value, read)
    program.str_w(value, write)
    program.add(read, read, 4)  # not post-indexed: KVM cannot emulate device accesses with write-back
    program.add(write, write, 4)
    program.subs(left, left, 1)
    program.cbnz(left, "copy")


def _dirty(program: Program, pages: int, value: int) -> None:
    if not pages:
        return
    address, left = 6, 7
    program.mov(address, TOUCHED_ADDRESS)
    program.mov(left, pages)
    program.label("dirty")
    program.str_(value, address)
    program.add(address, address, _PAGE)
    program.subs(left, left, 1)
    program.cbnz(left, "dirty")


def _count_for_ever(program: Program, lap_bits: int, dirty_pages: int = 0) -> None:
    base, uart, expected, seen, left, value = 0, 1, 2, 3, 4, 5
    program.mov(base, COUNTER_ADDRESS)
    program.mov(uart, _PL011)
    program.mov(value, _PL011_ENABLE)
    program.str_w(value, uart, _PL011_CONTROL)
    program.mov(expected, 0)
    program.str_(ZERO, base)

    program.label("lap")
    program.mrs(value, MIDR_EL1)
    program.str_(value, base, MIDR_ADDRESS - COUNTER_ADDRESS)
    program.mov(value, ord("."))
    program.str_w(value, uart)
    _dirty(program, dirty_pages, expected)
    program.mov(left, 1 << lap_bits)

    program.label("count")
    program.ldr(seen, base)
    program.cmp(seen, expected)
    program.b_ne("broken")
    program.add(expected, expected, 1)
    program.str_(expected, base)
    program.subs(left, left, 1)
    program.cbnz(left, "count")
    program.b("lap")

    program.label("broken")
    program.mov(value, ord("!"))
    program.str_w(value, uart)
    program.label("stop")
    program.wfi()
    program.b("stop")
