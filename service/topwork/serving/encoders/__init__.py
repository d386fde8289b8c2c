"""Encoders: from an image's pixels to its embedding, on CPUs and GPUs."""
