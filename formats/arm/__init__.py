"""Arm's registers: KVM's ids and names, kinds, ID fields, processors, errata; and a vCPU's register list.

Facts of the architecture and of KVM, with their tables beside the code. The sections that hold registers on
the wire are in `formats.vmstate`; what may become of a register is decided in `proxy.judging`.
"""
