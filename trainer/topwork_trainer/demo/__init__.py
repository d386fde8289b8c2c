"""The story from end to end, and the pictures that it needs."""
