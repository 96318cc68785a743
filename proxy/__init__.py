"""The proxy: sockets, files, policy and people around the sans-IO `formats` package."""

__version__ = "0.1.0"
