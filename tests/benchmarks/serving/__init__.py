"""The serving benchmark; docs/benchmarks.md says what it measures and how."""
