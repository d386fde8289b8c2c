"""Fit: train a head, and perhaps the backbone, on folders of photos; publish a revision."""
