"""A repository with a file of every kind, and the files of any storage."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from support import signed, tiny
from support.pictures import pictures
from topwork.bundle.candidates import Candidate, CandidateRecord, CandidateStore
from topwork.bundle.draft import Draft
from topwork.bundle.evaluation import EvaluationResult
from topwork.bundle.evaluation_sets import EmbeddedSet, EvaluationSet, EvaluationSets
from topwork.bundle.exemplars import Exemplars
from topwork.bundle.review_policy import ReviewPolicy
from topwork.bundle.spaces import put_space
from topwork.bundle.store import Repository
from topwork.inputs.embeddings import EmbeddingSpec
from topwork.storage.files import sha256
from topwork.storage.storage import HIDDEN, Storage
from topwork.training.evaluation_sets import set_images

LABELS = ("amber", "blue", "green")


def fill(root: Path, key: Path) -> Repository:
    """Return a repository whose revisions and drafts are signed with ``key``.

    Its model ``colours`` has revisions 1 to 3, of which 2 serves and 1 is pinned, stored images,
    an evaluation set with a result, a review policy, two candidates and one that is gone. ``later``
    is a draft, ``gone`` a deleted model; the quantised backbone ``mine`` and the space ``space``
    have names.
    """
    made = Repository(root, signed.signing(key, key))
    photos = {label: pictures(label, 12) for label in LABELS}
    exemplars = tiny.embed_pictures(photos)
    for contents in photos.values():
        for content in contents:
            made.put_image(content)
    first = tiny.publish(made, "colours", exemplars)
    for number in (2, 3):
        tiny.publish_copy(made, first)
        made.set_serving("colours", number, why="add_class", operation=f"op-{number}")
    made.set_serving("colours", 2, why="rollback")
    made.pin("colours", 1, pinned=True)
    _add_set(made, exemplars)
    _add_candidates(made)
    _add_backbones(made)
    made.new_model(
        Draft(
            model="later",
            backbone=first.backbone,
            backbone_info=first.backbone_info,
            seed=0,
            recipe=tiny.LOGISTIC,
            created=datetime.now(UTC),
            exemplars=first.exemplars[:1],
            images=12,
            operations=("op-9",),
        ),
        most=9,
    )
    tiny.publish_copy(made, first, model="gone")
    made.set_serving("gone", 1, why="fit")
    made.delete_model("gone")
    return made


def files(storage: Storage, directory: str = "") -> dict[str, bytes]:
    """Return the files of a storage by key, without those of the root, claims, deleted models."""
    return dict(_files(storage, directory))


def candidate(repository: Repository, number: int) -> tuple[Candidate, bytes]:
    """Return a candidate of the model ``colours`` and its image."""
    image = f"image {number}".encode()
    return Candidate(
        digest=sha256(b"pixels of " + image),
        record=CandidateRecord(
            reason="unknown",
            time=1.0,
            content=sha256(image),
            backbone=repository.manifest("colours", 1).backbone,
            revision=1,
            label="blue",
            probability=0.5,
            margin=0.25,
            unknown_probability=0.75,
            is_unknown=True,
        ),
        embedding=np.zeros(tiny.WIDTH, np.float16),
        fingerprint=np.zeros(32, np.uint8),
        preview=b"a preview",
    ), image


def _files(storage: Storage, directory: str) -> Iterator[tuple[str, bytes]]:
    prefix = f"{directory}/" if directory else ""
    for name in storage.files(directory):
        if directory and not name.endswith(".claim"):
            yield f"{prefix}{name}", storage.read(f"{prefix}{name}")
    for name in storage.directories(directory):
        if not name.startswith(HIDDEN) and not name.endswith(".gone"):
            yield from _files(storage, f"{prefix}{name}")


def _add_set(repository: Repository, exemplars: Exemplars) -> None:
    fresh = tiny.embed_pictures({label: pictures(label, 4, start=50) for label in LABELS})
    shards = repository.put_exemplars(fresh)
    for content in pictures("blue", 4, start=50):
        repository.put_image(content)
    sets = EvaluationSets(repository, "colours")
    made = sets.create(
        EvaluationSet(
            model="colours",
            name="held-out",
            created=datetime.now(UTC),
            images=set_images(repository.shards(shards), {}),
            embedded=(
                EmbeddedSet(backbone=repository.manifest("colours", 1).backbone, shards=shards),
            ),
        )
    )
    assert len(exemplars) == 36
    sets.put_result(
        EvaluationResult(
            model="colours",
            revision=2,
            created=datetime.now(UTC),
            name="held-out",
            made=made.created,
        )
    )


def _add_candidates(repository: Repository) -> None:
    store = CandidateStore(repository, "colours")
    with store.writing():
        repository.set_review_policy("colours", ReviewPolicy(enabled=True))
        for number in range(3):
            store.put(*candidate(repository, number))
        assert store.retire(candidate(repository, 0)[0].digest)


def _add_backbones(repository: Repository) -> None:
    model = tiny.saturating_backbone_model()
    info = repository.put_backbone(model, tiny.quantised_info(model))
    repository.add_backbone("mine", info.digest)
    space = put_space(repository, EmbeddingSpec(space="theirs", width=48))
    repository.add_backbone("space", space.digest)
