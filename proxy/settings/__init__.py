"""Settings that people write: TOML files with errors that name line and key, and the words for registers.

What the settings mean is said where they are used: `proxy.judging`, `proxy.hosts`.
"""
