"""Models of embeddings: what the suite for all kinds, ``test_kinds``, does not have."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import spaces, tiny

from topwork.bundle.comparison import Gate
from topwork.bundle.draft import Draft
from topwork.bundle.maintenance.check import check
from topwork.bundle.maintenance.garbage import collect
from topwork.bundle.signing.signatures import SigningFiles
from topwork.bundle.store import Repository
from topwork.changes.jobs import ChangeKind, ChangeResult, Job, Upload
from topwork.changes.lifecycle import Lifecycle, NewModel
from topwork.changes.retrain import Trainer
from topwork.errors import AlreadyExists, NotFound
from topwork.inputs.embeddings import to_content
from topwork.limits import DEFAULT_LIMITS

LIMITS = replace(DEFAULT_LIMITS, min_images_per_label=3)
ANY = Gate(max_old_class_drop=1.0, min_new_class_recall=0.0)


def apply(
    repository: Repository,
    kind: ChangeKind,
    label: str = "",
    contents: Sequence[bytes] = (),
    digests: Sequence[str] = (),
) -> ChangeResult:
    """Run all steps of a change and return its result."""
    job = Job(
        kind=kind,
        model="points",
        label=label,
        accepted=0.0,
        uploads=tuple(
            Upload(name=f"{label}-{number}", digest=repository.put_image(content), label="")
            for number, content in enumerate(contents)
        ),
        gate=ANY,
        digests=tuple(sorted(set(digests))),
    )
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    operation = str(uuid.uuid4())
    candidate = trainer.solve(job, trainer.embed(job, lambda *_, **__: None), operation)
    assert candidate.rejected is None
    if candidate.published:
        trainer.serve(job, candidate.result.revision, operation)
    return candidate.result


def test_bad_rows_are_skipped_with_the_reason(tmp_path: Path) -> None:
    """A stored row that does not fit is left out, as an unreadable image is."""
    repository = spaces.repository(tmp_path)
    good = [to_content(row) for row in spaces.rows("d", 5)]
    nan = to_content(np.full(12, np.nan, np.float32))
    result = apply(repository, "add_class", "d", [*good, nan, bytes(44), b"x", good[0]])
    assert result.images_used == 5
    found = [(image.name, image.reason) for image in result.skipped]
    assert found == [
        ("d-5", "EMBEDDING_INVALID"),
        ("d-6", "EMBEDDING_INVALID"),
        ("d-7", "EMBEDDING_INVALID"),
        ("d-8", "DUPLICATE"),
    ]
    assert result.skipped[3].message == "same numbers as d-0"


def test_repository_of_embeddings_is_sound(tmp_path: Path) -> None:
    """Fsck finds nothing wrong, and gc keeps the space while a model or draft has it."""
    repository = spaces.repository(tmp_path)
    lifecycle = Lifecycle(repository.root, SigningFiles(), most=10)
    other = replace(spaces.SPEC, space="others-v1")
    lifecycle.create(NewModel(name="drafted", space=other))
    assert [problem.text for problem in check(repository) if problem.severity == "error"] == []
    collect(repository, keep=1, spare_seconds=0)
    assert {info.name for info in repository.backbones()} == {"points-v1", "others-v1"}
    path = next(repository.root.glob("backbones/*/space.json"))
    path.write_bytes(path.read_bytes() + b" ")
    assert any("sha256" in problem.text for problem in check(repository))


def test_space_is_no_default_backbone(tmp_path: Path) -> None:
    """A model without a named backbone gets the only one that takes images."""
    repository = spaces.repository(tmp_path)
    lifecycle = Lifecycle(repository.root, SigningFiles(), most=10)
    with pytest.raises(NotFound, match="no backbone"):
        lifecycle.create(NewModel(name="m"))
    model = tiny.backbone_model()
    repository.put_backbone(model, tiny.backbone_info(model))
    lifecycle.create(NewModel(name="m"))
    draft = repository.draft("m")
    assert isinstance(draft, Draft)
    assert repository.backbone(draft).name == "tiny"
    lifecycle.create(NewModel(name="n", backbone="points-v1"))
    assert repository.backbone(repository.draft("n")).preprocess == spaces.SPEC


def test_repeated_creation_in_a_space_is_idempotent(tmp_path: Path) -> None:
    """The request id covers space and width."""
    lifecycle = Lifecycle(tmp_path, SigningFiles(), most=10)
    identity = str(uuid.uuid4())
    new = NewModel(name="m", space=spaces.SPEC, request_id=identity)
    lifecycle.create(new)
    lifecycle.create(new)
    wider = replace(spaces.SPEC, width=13)
    with pytest.raises(AlreadyExists, match="other settings"):
        lifecycle.create(replace(new, space=wider))
