"""How fast the proxy is, next to others in the same run: `make bench` runs all and writes docs/benchmarks.md."""
