"""Readers of labelled photos: class folders, manifests, archives, Parquet files, annotations."""
