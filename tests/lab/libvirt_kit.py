"""What an emulated host needs to be a libvirt host: the daemon, virsh, nftables and their kernel modules."""

from __future__ import annotations

import re

from tests.lab.cpio import File
from tests.lab.images import Kit

_USERS = "root:x:0:0::/:/bin/sh\nlibvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin\n"
_GROUPS = "root:x:0:\nlibvirt-qemu:x:64055:\nkvm:x:64056:\n"

# "none" for loopback laboratories only: whoever reaches the port is root. No keepalive: emulated hosts are slow.
_LIBVIRTD_CONF = """\
listen_tls = 0
listen_tcp = 1
auth_tcp = "none"
keepalive_interval = -1
log_outputs = "3:file:/tmp/libvirtd.log"
"""

QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
stdio_handler = "file"
cgroup_controllers = []
namespaces = []
"""
"""For hosts that hold nothing but a test's guests."""

_NO_KEEPALIVE = "keepalive_interval = -1\n"

LIBVIRT = Kit(
    name="libvirt",
    packages=("libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients", "nftables"),
    programs=(
        "usr/sbin/libvirtd",
        "usr/bin/virsh",
        "usr/sbin/nft",
        "usr/lib/aarch64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so",
    ),
    also=re.compile(r"usr/share/libvirt/cpu_map/"),
    modules=("crc32c_generic", "nft_chain_nat", "nft_redir", "nft_fib_inet", "nft_ct"),
    files={
        "etc/passwd": File(_USERS.encode()),
        "etc/group": File(_GROUPS.encode()),
        "etc/nsswitch.conf": File(b"passwd: files\ngroup: files\nhosts: files\n"),
        "etc/hosts": File(b"127.0.0.1 localhost\n192.0.2.1 rack3\n192.0.2.2 rack7\n"),
        "etc/libvirt/libvirtd.conf": File(_LIBVIRTD_CONF.encode()),
        "etc/libvirt/qemu.conf": File((QEMU_CONF + _NO_KEEPALIVE).encode()),
        "var/lib/libvirt/.there": File(b""),
        "var/log/libvirt/qemu/.there": File(b""),
        "var/cache/libvirt/.there": File(b""),
    },
)
