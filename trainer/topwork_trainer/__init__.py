"""Offline trainer: learns from folders of photos and publishes a bundle. Needs torch."""
