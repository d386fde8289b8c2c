"""Benchmarks; see docs/benchmarks.md."""

from topwork.runtime import process

process.configure()  # before a benchmark imports Pillow and ONNX Runtime
