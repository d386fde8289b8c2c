"""Serving benchmark; its measurements are described in docs/benchmarks.md."""
