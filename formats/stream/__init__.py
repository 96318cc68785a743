"""The stream of the main channel, from its header to its end: feed bytes, take events.

The top of `formats`: it uses the other floors, and none of them uses it.
"""
