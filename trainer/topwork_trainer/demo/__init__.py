"""End-to-end demo, and the data sets for it."""
