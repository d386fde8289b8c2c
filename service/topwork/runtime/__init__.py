"""The process: ONNX Runtime, cores, logs, interrupts."""
