"""What passes beside the main channel's stream: multifd's greeting, and the return path.

The main channel itself is in `formats.stream`.
"""
