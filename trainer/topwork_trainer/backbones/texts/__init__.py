"""Text encoders as backbones: from ONNX files, and from checkpoints in Hugging Face's format."""
