"""Readers of training data: class folders, manifests, archives, Parquet data sets, annotations."""

from topwork_trainer.data.photos import Photo, Photos, check_counts
from topwork_trainer.data.scan import add_test_set, scan

__all__ = ["Photo", "Photos", "add_test_set", "check_counts", "scan"]
