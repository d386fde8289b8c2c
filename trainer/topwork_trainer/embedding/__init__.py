"""Embedding of photos into Parquet files, by several processes and machines, and fits on them."""
