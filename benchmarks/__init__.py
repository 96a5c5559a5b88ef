"""Every claim of speed, measured beside its peer: `python -m benchmarks`."""
