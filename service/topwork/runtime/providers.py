"""Names of ONNX Runtime's execution providers."""

from __future__ import annotations

from typing import Literal

Provider = Literal["auto", "cpu", "cuda", "openvino", "tensorrt"]
"""Execution provider of a graph; ``auto`` is CUDA if it works, else the CPU."""

NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""ONNX Runtime's own names."""

NEEDS = {
    "cuda": "NVIDIA's driver, CUDA, cuDNN, and onnxruntime-gpu in place of onnxruntime",
    "openvino": "onnxruntime-openvino in place of onnxruntime",
    "tensorrt": "what 'cuda' needs, and the version of TensorRT that onnxruntime-gpu was built for",
}
"""Requirements of each provider, for error messages."""
