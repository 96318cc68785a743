"""What a host is: its profile, the profile's file, and the probe that asks its KVM for one.

Whether a guest can go to it is decided in `proxy.judging`; many hosts together are in `proxy.fleet`.
"""
