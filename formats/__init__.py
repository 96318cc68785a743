"""The wire formats of a QEMU migration: bytes in, events out; no socket, no file, no clock, no policy."""
