"""QEMU's own migration-test, with all its TCP connections through the proxy; `make qtest`."""
