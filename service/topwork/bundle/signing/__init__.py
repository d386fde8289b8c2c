"""Signatures of revisions: keys, signatures, and how a repository is signed."""
