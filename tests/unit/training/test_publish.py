"""Publication: the manifest records how a revision was made; it does not serve yet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from support import tiny
from support.pictures import pictures

from topwork.bundle.comparison import Gate, Rejection
from topwork.bundle.exemplars import Exemplars
from topwork.bundle.head_graph import to_onnx
from topwork.bundle.manifest import ChosenHead, Manifest, ShardRef
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, NotFound, NotReady
from topwork.learning.learn import learn
from topwork.report.content import Making
from topwork.runtime.backend import open_session, software_versions
from topwork.training.publish import Origin, publish

SEED = 3
BACKBONE = tiny.backbone_info(tiny.backbone_model())


@pytest.fixture(scope="module")
def parts() -> list[Exemplars]:
    """Return exemplars of three labels in two parts."""
    old = tiny.embed_pictures({label: pictures(label, 12) for label in ("green", "amber")})
    return [old, tiny.embed_pictures({"blue": pictures("blue", 8)})]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository with only the tiny backbone."""
    made = Repository(tmp_path)
    made.put_backbone(tiny.backbone_model(), BACKBONE)
    return made


def published(
    repository: Repository,
    shards: Sequence[ShardRef],
    *,
    parent: int = 0,
    rejection: Rejection | None = None,
) -> Manifest:
    """Learn from stored shards and publish."""
    exemplars = repository.exemplars(shards)
    return publish(
        repository,
        exemplars,
        learn(exemplars, seed=SEED, recipe=tiny.LOGISTIC),
        model="colours",
        backbone=BACKBONE.digest,
        shards=shards,
        seed=SEED,
        recipe=tiny.LOGISTIC,
        making=Making(command="topwork-train fit colours"),
        origin=Origin(
            change="add_class" if parent else "fit",
            parent=parent,
            operation="an operation" if parent else "",
            rejection=rejection,
        ),
    )


def stored(repository: Repository, parts: Sequence[Exemplars]) -> list[ShardRef]:
    """Store all exemplars and return their shards."""
    return [shard for part in parts for shard in repository.put_exemplars(part)]


def test_manifest_records_provenance(repository: Repository, parts: list[Exemplars]) -> None:
    """The manifest has data, seed, labels, backbone, parent, operation and software versions."""
    shards = stored(repository, parts)
    published(repository, shards[:2])
    manifest = published(repository, shards, parent=1)
    both = repository.exemplars(shards)
    learned = learn(both, seed=SEED, recipe=tiny.LOGISTIC)
    assert manifest == repository.manifest("colours", 2)
    assert learned.head.unknown is not None
    assert (manifest.change, manifest.parent, manifest.operation) == (
        "add_class",
        1,
        "an operation",
    )
    assert manifest.seed == SEED
    assert manifest.labels == ("amber", "blue", "green")
    assert manifest.exemplars == tuple(shards)
    assert (manifest.images, manifest.data_digest) == (32, both.data_digest())
    assert manifest.recipe == tiny.LOGISTIC
    assert manifest.chosen == ChosenHead(
        kind="logistic",
        normalisation="sqrt_l2",
        strength=learned.strength,
        temperature=learned.head.temperature,
        unknown_threshold=learned.head.unknown.threshold,
    )
    assert manifest.unknown_distribution == learned.head.unknown.distribution
    assert manifest.unknown_distribution is not None
    assert sum(manifest.unknown_distribution.images) == learned.metrics.images
    assert b"topwork-train fit colours" in repository.report(manifest)
    assert manifest.versions == software_versions()
    assert repository.backbone(manifest) == BACKBONE
    assert repository.metrics(manifest) == learned.metrics


def test_published_head_is_the_learnt_head(repository: Repository, parts: list[Exemplars]) -> None:
    """The graph equals that of the head of all exemplars, and gives its probabilities."""
    shards = stored(repository, parts)
    manifest = published(repository, shards)
    both = repository.exemplars(shards)
    head = learn(both, seed=SEED, recipe=tiny.LOGISTIC).head
    assert repository.head(manifest) == to_onnx(head)
    session = open_session(repository.head(manifest), output="probabilities")
    np.testing.assert_allclose(
        session.run(both.embeddings), head.probabilities(both.embeddings), atol=1e-6
    )


@pytest.mark.slow
def test_shards_do_not_change_the_head(repository: Repository, parts: list[Exemplars]) -> None:
    """The same exemplars in any number and order of shards give the same head."""
    two = stored(repository, parts)
    halves = [part.where(np.arange(len(part)) % 2 == half) for part in parts for half in (0, 1)]
    four = stored(repository, halves)
    assert len(four) == 2 * len(two)
    found = [published(repository, shards) for shards in (two, two[::-1], four)]
    assert len({manifest.head for manifest in found}) == 1
    assert len({manifest.metrics for manifest in found}) == 1
    assert len({manifest.data_digest for manifest in found}) == 1


def test_a_rejected_revision_never_serves(repository: Repository, parts: list[Exemplars]) -> None:
    """A rejected revision is published with the reasons, and cannot be made to serve."""
    shards = stored(repository, parts)
    rejection = Rejection(gate=Gate(), failures=("it is no good",))
    manifest = published(repository, shards, rejection=rejection)
    assert repository.manifest("colours", 1).rejection == rejection
    with pytest.raises(NotReady, match="revisions/1 was rejected: it is no good"):
        repository.set_serving("colours", manifest.revision, why="rollback")


def test_published_revision_does_not_serve(repository: Repository, parts: list[Exemplars]) -> None:
    """The first revision does not serve; the next revision has the next number."""
    shards = repository.put_exemplars(parts[0])
    assert [published(repository, shards).revision for _ in range(2)] == [1, 2]
    assert repository.models() == []
    with pytest.raises(NotFound):
        repository.serving("colours")


@pytest.mark.parametrize("missing", ["exemplars", "backbones"])
def test_missing_shard_or_backbone_is_corrupt(
    missing: str, tmp_path: Path, parts: list[Exemplars]
) -> None:
    """Without its shard or backbone nothing is published; the error names the file."""
    repository = Repository(tmp_path)
    if missing == "exemplars":
        repository.put_backbone(tiny.backbone_model(), BACKBONE)
        shards: Sequence[ShardRef] = [ShardRef(label="green", digest="0" * 64)]
    else:
        shards = repository.put_exemplars(parts[0])
    with pytest.raises(Corrupt, match=f"{missing}/.* is missing"):
        published(repository, shards)
    with pytest.raises(NotFound):
        repository.revisions("colours")
