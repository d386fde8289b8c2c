"""Execution providers of ONNX Runtime, by the names that users give them."""

from __future__ import annotations

from typing import Literal

Provider = Literal["auto", "cpu", "cuda", "openvino", "tensorrt"]
"""What runs a graph; ``auto`` is CUDA where it works, else the CPU."""

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
    "tensorrt": "what 'cuda' needs, and TensorRT of the version that onnxruntime-gpu was built for",
}
"""What has to be installed, for error messages."""
