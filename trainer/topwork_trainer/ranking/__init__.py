"""Ranking of backbones: each probed on a sample of the photos, its gain beside its cost."""
