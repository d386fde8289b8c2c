"""Uploaded images that an evaluation set of the model has: they are not trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from topwork.bundle.evaluation_sets import EvaluationSets
from topwork.bundle.shards import Shard
from topwork.bundle.store import Repository
from topwork.changes.jobs import SkippedUpload

REASON = "IN_EVALUATION_SET"
"""Reason of the skipped images. Training on them would make the set say less at every upload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Images of all evaluation sets of a model that have a label.

    Images of none of the classes may be trained on: they would be of a class then, and the set no
    longer counts them.
    """

    pixels: dict[bytes, str]
    """Name of a set by image digest, if the set is embedded with the backbone."""
    files: dict[bytes, str]
    """Name of a set by the sha256 of an encoded file."""

    @classmethod
    def of(cls, repository: Repository, model: str, backbone: str) -> HeldOut:
        """Return the images that new embeddings by a backbone are compared with. Raises Corrupt."""
        pixels, files = dict[bytes, str](), dict[bytes, str]()
        for stored in EvaluationSets(repository, model).all():
            for label, shard in repository.shards(stored.shards(backbone) or ()):
                if label:
                    pixels |= {row.tobytes(): stored.name for row in shard.digests}
            for image in stored.images:
                if image.label:
                    files[bytes.fromhex(image.content)] = stored.name
        return cls(pixels=pixels, files=files)

    def split(self, label: str, shard: Shard) -> tuple[Shard, list[SkippedUpload]]:
        """Return the shard of new images of a label without those of sets, and these as skipped."""
        names = [
            self.pixels.get(digest.tobytes()) or self.files.get(content.tobytes(), "")
            for digest, content in zip(shard.digests, shard.contents, strict=True)
        ]
        skipped = [
            SkippedUpload(
                name=shard.names[row],
                label=label,
                reason=REASON,
                message=f"the evaluation set {name!r} has it: delete the set to train on its "
                "images",
            )
            for row, name in enumerate(names)
            if name
        ]
        if not skipped:
            return shard, []
        return shard.where(np.array([not name for name in names])), skipped
