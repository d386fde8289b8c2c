"""Repositories with chosen references between files; the contents are placeholders."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from support import tiny
from topwork.bundle.comparison import Rejection
from topwork.bundle.examples import index_of_shards
from topwork.bundle.exemplars import make, shard_of
from topwork.bundle.manifest import ChosenHead, Manifest, ShardRef
from topwork.bundle.metrics import evaluate
from topwork.bundle.recipe import Recipe
from topwork.bundle.store import Repository
from topwork.storage.files import sha256

METRICS = evaluate(np.arange(4) % 2, np.eye(2)[np.arange(4) % 2], ("a", "b"), folds=5)


def image(number: int) -> bytes:
    """Return a placeholder for an encoded image."""
    return f"image {number}".encode()


def put_shard(repository: Repository, *images: int, put: bool = True) -> str:
    """Store exemplars of images, with ``put`` also the images; return the shard's digest."""
    if put:
        for number in images:
            repository.put_image(image(number))
    digests = b"".join(bytes.fromhex(sha256(image(number))) for number in images)
    rows = np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32)
    wide = np.zeros((len(images), tiny.WIDTH), np.float32)
    made = make(wide, rows, np.zeros_like(rows), ["a"] * len(images), contents=rows)
    return repository.put_shard(shard_of(made, "a"))


def put_backbone(repository: Repository, number: int = 0) -> str:
    """Store a placeholder for a backbone and return its digest."""
    content = f"backbone {number}".encode()
    return repository.put_backbone(content, tiny.backbone_info(content)).digest


def put_quantised_backbone(repository: Repository, number: int, twin: int) -> str:
    """Store a placeholder for a backbone that was quantised from another; return its digest."""
    content = f"backbone {number}".encode()
    info = replace(
        tiny.backbone_info(content), precision="int8", twin=sha256(f"backbone {twin}".encode())
    )
    return repository.put_backbone(content, info).digest


def publish(
    repository: Repository,
    shards: Collection[str],
    *,
    model: str = "m",
    backbone: int = 0,
    rejection: Rejection | None = None,
) -> Manifest:
    """Publish a revision of one label, ``a``, that refers to ``shards``; it does not serve yet."""
    refs = tuple(ShardRef(label="a", digest=shard) for shard in shards)
    exemplars = repository.exemplars(refs)
    digest = put_backbone(repository, backbone)
    draft = Manifest(
        model=model,
        revision=0,
        parent=0,
        labels=("a",),
        backbone=digest,
        backbone_info=repository.backbone_info_digest(digest),
        head="",
        metrics="",
        report="",
        exemplars=refs,
        data_digest=exemplars.data_digest(),
        images=len(exemplars),
        seed=0,
        recipe=Recipe(),
        chosen=ChosenHead(
            kind="logistic",
            normalisation="l2",
            strength=1.0,
            temperature=1.0,
            unknown_threshold=None,
        ),
        precision_gate=None,
        change="fit",
        operation="",
        comparison=None,
        rejection=rejection,
        created=datetime.now(UTC),
        versions={},
    )
    return repository.publish(
        draft,
        head=b"head",
        metrics=METRICS,
        report=lambda made: f"{made.revision}".encode(),
        index=index_of_shards(repository.shards(refs)),
    )


def repository(root: Path) -> Repository:
    """Return a repository whose model ``m`` has revisions 1 to 4; 3 serves, and all are old.

    Revision 1 refers to the shard of image 1, revision 2 to that of image 2, revision 3 to those of
    images 2 and 3, revision 4 to those of images 2 to 4.
    """
    made = _four_revisions(root)
    grow_old(made)
    return made


@tiny.copied
def _four_revisions(root: Path) -> Repository:
    made = Repository(root)
    first, second, third, fourth = (put_shard(made, number) for number in (1, 2, 3, 4))
    for shards in ([first], [second], [second, third], [second, third, fourth]):
        publish(made, shards)
    made.set_serving("m", 3, why="fit")
    return made


def grow_old(repository: Repository) -> None:
    """Set the modification times of all files to a hundred days ago."""
    past = time.time() - 100 * 24 * 3600
    for directory, _, names in os.walk(repository.root):
        for name in (".", *names):
            with contextlib.suppress(FileNotFoundError):  # deleted concurrently
                os.utime(Path(directory, name), (past, past))
