"""Serve a frozen image backbone and graft classes onto it. This package runs without torch."""

__version__ = "0.1.0"
