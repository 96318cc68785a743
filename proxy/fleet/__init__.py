"""Many hosts: who can go where, as a matrix and as a page.

Each pair is judged by `proxy.judging`.
"""
