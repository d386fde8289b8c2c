"""Maintenance of a repository: garbage collection and the check of all that it holds."""
