"""What a service needs around the relay: systemd's protocol, metrics, health; they watch, and decide nothing."""
