"""Captured streams: opening files, reading and rewriting them, into a copy or in place.

How a stream comes into a file, or out of it onto the wire, is in `proxy.recording`.
"""
