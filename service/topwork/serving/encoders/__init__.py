"""Encoders: from pixels to embeddings, on CPUs and GPUs."""
