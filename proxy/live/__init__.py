"""Migrations as they pass: the relay accepts connections, a session carries one migration.

Connections are made in `proxy.net`, bytes changed by `proxy.rewriter`. What is kept in files is in `proxy.captures`.
"""
