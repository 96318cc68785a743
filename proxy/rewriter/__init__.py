"""Parser and judge joined: bytes in, bytes out, report."""
