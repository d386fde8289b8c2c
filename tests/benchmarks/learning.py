"""Measure AddClass beside a full retrain from images, and whether both give the same.

    python tests/benchmarks/learning.py [PHOTOS]

PHOTOS is a folder with a folder of photos for each class, the last of which is added; without it
flowers are rendered. Every image is learnt from, and accuracies are by cross-validation.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from topwork.bundle.store import Repository
from topwork_trainer import commands


def main() -> None:
    """Measure and print one JSON object."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        data = Path(sys.argv[1]) if len(sys.argv) > 1 else work / "rendered"
        if len(sys.argv) < 2:
            commands.run("topwork_trainer", "demo-data", data)
        labels = sorted(path.name for path in data.iterdir() if path.is_dir())
        repository = work / "repository"
        fit = ("fit", data, "--repository", repository, "--no-cache", "--json")
        old = ",".join(labels[:-1])
        (first,) = commands.run("topwork_trainer", *fit, "--model", "grafted", "--classes", old)
        with commands.serving(repository, work / "log") as served:
            (added,) = commands.run(
                "topwork", "add-class", "--address", served.address, "--model", "grafted",
                "--label", labels[-1], "--json", data / labels[-1],
            )  # fmt: skip
        (joint,) = commands.run("topwork_trainer", *fit, "--model", "joint")
        store = Repository(repository)
        same = store.manifest("grafted", 2).head == store.manifest("joint", 1).head
    print(
        json.dumps(
            {
                "images": joint["images"],
                "new_images": added["images_used"],
                "accuracy_of_four": [first[key] for key in _ACCURACY],
                "accuracy_of_five": [added["metrics"][key] for key in _ACCURACY],
                "old_labels_before": added["metrics"]["old_labels_accuracy_before"],
                "old_labels_after": added["metrics"]["old_labels_accuracy_after"],
                "new_label_recall": added["metrics"]["new_label_recall"],
                "add_class_seconds": added["seconds"],
                "full_retrain_seconds": joint["seconds"],
                "times_faster": joint["seconds"]["total"] / added["seconds"]["total"],
                "head_is_byte_identical": same,
            },
            indent=1,
        )
    )


_ACCURACY = ("accuracy", "accuracy_low", "accuracy_high")


if __name__ == "__main__":
    main()
