"""Soak test: a real server under all kinds of changes, killed again and again.

``make soak``, or ``PYTHONPATH=tests python -m soak --help``.
"""
