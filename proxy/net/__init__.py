"""Connections: addresses, listening, dialling, TLS, redirection by nftables, and carrying bytes from one to another.

It knows nothing of migrations, registers or policies.
"""
