"""Ranking of backbones by accuracy and cost on a sample of the photos."""
