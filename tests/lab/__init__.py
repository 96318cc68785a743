"""The lab: real QEMUs, bare-metal guests and a recording relay, driven with trio."""
