"""Readers of training data: class folders, manifests, archives, Parquet data sets, annotations."""

from topwork_trainer.data.photos import Photo, Photos, check_counts
from topwork_trainer.data.scan import scan, scan_test

__all__ = ["Photo", "Photos", "check_counts", "scan", "scan_test"]
