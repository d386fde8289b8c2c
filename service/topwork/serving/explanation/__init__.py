"""Explanations of single classifications: evidence by position, and the nearest examples."""
