"""Conversion between plain values and the messages of the contract."""
