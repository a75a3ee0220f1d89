"""Benchmarks: `make bench`. Speed drifts with the hour, so every figure is a ratio taken in one run."""
