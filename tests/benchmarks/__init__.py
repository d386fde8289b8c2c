"""What is measured rather than tested; see docs/benchmarks.md."""
