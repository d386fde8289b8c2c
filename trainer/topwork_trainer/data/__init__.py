"""Training data: photos with labels, selected and checked, and held-out photos."""

from topwork_trainer.data.photos import Photos, check_counts
from topwork_trainer.data.scan import add_test_set, scan

__all__ = ["Photos", "add_test_set", "check_counts", "scan"]
