"""Inputs: from folders and bytes to the arrays that encoders take."""
