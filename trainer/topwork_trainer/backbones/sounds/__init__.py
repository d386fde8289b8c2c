"""Encoders of audio as backbones."""
