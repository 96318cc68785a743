"""Iterable sections (`ram`, `block`, `dirty-bitmap`, `vfio`): where the body of each part ends.

Their bytes are stepped over, not decoded. Device sections, which come once, are in `formats.vmstate`.
"""
