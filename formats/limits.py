"""How much is held in memory at most."""

from typing import Final

DEFAULT_DEVICE_STATE_LIMIT: Final = 64 << 20
"""Bytes; 64 vCPUs of 260 registers each and their devices have less than 1 MiB, a vCPU with SME 70 KiB more."""
