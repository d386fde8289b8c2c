"""The soak: a real server under changes of all kinds, killed again and again.

``make soak``, or ``PYTHONPATH=tests python -m soak --help``.
"""
