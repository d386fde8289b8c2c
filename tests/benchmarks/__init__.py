"""What is measured rather than tested; see docs/benchmarks.md."""

from topwork.runtime import process

process.configure()  # as entry points do, before a benchmark imports Pillow and ONNX Runtime
