"""The frame of the stream: record types, their construct schemas, and what every event is made of.

What the records mean in their order is in `formats.stream`.
"""
