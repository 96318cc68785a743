"""TLS: the two `roles` and the handshake, `credentials` in folders, and the `connection` that comes of it."""
