"""Maintenance of a repository: garbage collection and integrity check."""
