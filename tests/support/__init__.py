"""Shared test support: generated images, repositories with a tiny backbone, server processes."""
