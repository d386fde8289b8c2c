"""Changes of a model of embeddings: like those of images, byte for byte a fit on the same rows."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from support import histories, spaces, tiny
from support.histories import Step

from topwork.bundle.draft import Draft
from topwork.bundle.maintenance.check import check
from topwork.bundle.maintenance.garbage import collect
from topwork.bundle.manifest import Manifest
from topwork.bundle.signing.signatures import SigningFiles
from topwork.bundle.store import Repository
from topwork.changes.lifecycle import Lifecycle, NewModel
from topwork.errors import AlreadyExists, NotFound, NotReady
from topwork.export.model import export
from topwork.inputs.embeddings import digest, prepare, to_content

POOL = {
    label: [to_content(row) for row in spaces.rows(label, histories.EXAMPLES)]
    for label in histories.LABELS
}
to_row = partial(prepare, spec=spaces.SPEC)
apply = partial(histories.apply, model="points")


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(history=histories.histories())
def test_history_of_changes_equals_one_fit(history: list[Step]) -> None:
    """Labels, head and data digest equal those of one fit on the remaining rows."""

    def publish(repository: Repository, rows: Mapping[str, Sequence[bytes]]) -> Manifest:
        made = {label: [*map(to_row, own)] for label, own in rows.items()}
        return spaces.publish(repository, "points", spaces.exemplars(made))

    histories.check_equals_one_fit(
        history,
        POOL,
        model="points",
        publish=publish,
        digest=lambda content: digest(to_row(content)),
    )


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


def test_export_of_embeddings_is_not_ready(tmp_path: Path) -> None:
    """There is no graph to join the head to."""
    with pytest.raises(NotReady, match="takes embeddings, which its clients compute"):
        export(spaces.repository(tmp_path), "points")
