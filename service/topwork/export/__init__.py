"""Export of a revision for other runtimes: one ONNX file, and a page for browsers."""
