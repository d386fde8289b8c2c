"""Stored documents of released versions, and the repository that such a release leaves behind."""
