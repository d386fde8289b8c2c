"""Fit: trains a head, and optionally the backbone, on folders of photos; publishes a revision."""
