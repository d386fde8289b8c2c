"""Conversion of examples into messages."""

from __future__ import annotations

import math

from topwork.bundle.examples import ExampleIndex
from topwork.bundle.manifest import Manifest
from topwork.rpc.convert.fields import operation_name, timestamp
from topwork.serving.examples import Detail
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import example_pb2 as example_pb


def to_example(
    manifest: Manifest, index: ExampleIndex, row: int, detail: Detail | None
) -> example_pb.Example:
    """Return the example in a row of a revision's index; ``detail`` None: the basic view."""
    digest = index.digests[row].tobytes()
    # Equal digests are adjacent.
    first, end = row, row + 1
    while first and index.digests[first - 1].tobytes() == digest:
        first -= 1
    while end < len(index) and index.digests[end].tobytes() == digest:
        end += 1
    ref = manifest.exemplars[index.parts[row]]
    judged = index.suggested[row] >= 0
    x, y = index.points[row].tolist()
    return example_pb.Example(
        name=f"models/{manifest.model}/examples/{digest.hex()}",
        digest=digest.hex(),
        display_name=index.name(row),
        label=index.labels[index.targets[row]],
        other_labels=[
            index.labels[index.targets[other]] for other in range(first, end) if other != row
        ],
        create_time=None if ref.added is None else timestamp(ref.added),
        operation=operation_name(ref.operation),
        label_probability=float(index.probabilities[row]) if judged else None,
        suggested_label=index.labels[index.suggested[row]] if judged else "",
        suggested_probability=float(index.suggested_probabilities[row]) if judged else None,
        suspect=bool(index.suspicion[row] > 0),
        suspicion=float(index.suspicion[row]),
        fold=int(index.folds[row]) if index.folds[row] >= 0 else None,
        preview=b"" if detail is None else detail.preview,
        content_digest="" if detail is None else detail.content,
        stored=detail is not None and detail.stored,
        predictions=[
            classify_pb.Prediction(label=index.labels[target], probability=probability)
            for target, probability in zip(
                index.ranked[row].tolist(), index.ranked_probabilities[row].tolist(), strict=True
            )
            if target >= 0
        ],
        map_point=None if math.isnan(x) else example_pb.MapPoint(x=x, y=y),
    )
