"""`python -m proxy` is `vmstate-proxy`."""

from proxy.cli import main

main()
