"""What files put around a stream: libvirt's save header, and mapped-ram's places for pages.

No file is opened here; `proxy.captures` does that.
"""
