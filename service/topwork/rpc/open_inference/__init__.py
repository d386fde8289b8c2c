"""The Open Inference Protocol, version 2: the same engine, asked by tensors."""
