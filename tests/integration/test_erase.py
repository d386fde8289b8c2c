"""Erasure of removed examples: no byte of them is left in the repository."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
from support import servers, tiny
from support.pictures import pictures

from topwork import Client
from topwork.bundle.maintenance.check import check
from topwork.bundle.maintenance.garbage import collect
from topwork.bundle.store import Repository
from topwork.inputs.image import pixel_digest, preprocess

pytestmark = pytest.mark.slow

DAY = 24 * 3600.0
LABELS = ("amber", "blue")


def traces(root: Path, needles: dict[str, bytes], *, operations: bool = False) -> set[str]:
    """Return which needles are in a file, or in a file's name, of a repository."""
    found = set()
    for path in root.rglob("*"):
        is_database = path.name.startswith("operations.")
        if path.is_file() and (operations or not is_database):
            content = path.read_bytes() + path.name.encode()
            found |= {name for name, needle in needles.items() if needle in content}
    return found


def test_erase_leaves_no_byte_of_an_example(tmp_path: Path) -> None:
    """After `gc --erase` only the operations' database has the name and digests of the image."""
    repository = tiny.repository(tmp_path)
    other = tiny.publish(  # has none of it, so its revisions stay
        repository, "other", tiny.embed_pictures({label: pictures(label, 8) for label in LABELS})
    )
    secret, *others = pictures("violet", 8)
    digest = pixel_digest(preprocess(secret, tiny.SPEC))
    with servers.running(tmp_path) as server, Client(server.address) as client:
        images = [("secret-name.png", secret), *((f"{n}.png", one) for n, one in enumerate(others))]
        added = client.add_class("colours", "violet", images)
        assert [*client.watch(added.name)][-1].result()
        exemplars = repository.exemplars(repository.manifest("colours", 2).exemplars)
        (row,) = np.flatnonzero([one.tobytes().hex() == digest for one in exemplars.digests])
        needles = {
            "encoded": secret,
            "thumbnail": exemplars.thumbnails[row],
            "embedding": exemplars.embeddings[row].tobytes(),
            "name": b"secret-name",
            "digest": bytes.fromhex(digest),
            "digest in hexadecimal": digest.encode(),
            "content": exemplars.contents[row].tobytes(),
            "content in hexadecimal": exemplars.contents[row].tobytes().hex().encode(),
        }
        assert traces(tmp_path, needles) >= needles.keys() - {"digest in hexadecimal"}
        refused = collect(repository, keep=10, spare_seconds=DAY, erase=[digest])
        (reason,) = refused.refused[:1]
        assert "models/colours/revisions/2 has an example to erase" in reason
        removed = client.remove_examples("colours", [digest])
        receipt = [*client.watch(removed.name)][-1].result()
        assert (receipt.old_revision, receipt.revision.revision) == (2, 3)
        client.pin_revision("colours", 2)
        assert collect(repository, keep=10, spare_seconds=DAY, erase=[digest]).refused
        client.pin_revision("colours", 2, unpin=True)
        dry = collect(repository, keep=10, spare_seconds=DAY, erase=[digest], dry_run=True)
        assert traces(tmp_path, needles) >= needles.keys() - {"digest in hexadecimal"}
        erased = collect(repository, keep=10, spare_seconds=DAY, erase=[digest])
        assert dry == erased
        assert (erased.refused, {one.kind for one in erased.removed}) == (
            (),
            {"revision", "shard", "image"},
        )
        assert traces(tmp_path, needles) == set()
        assert repository.revisions("colours") == [1, 3]
        assert repository.manifest("other", 1) == other
        assert [one for one in check(Repository(tmp_path)) if one.severity == "error"] == []
        answer = client.classify("colours", [others[0]])
        assert answer.results[0].predictions[0].label == "violet"
        server.stop()
    with sqlite3.connect(tmp_path / "operations.sqlite") as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    rest = traces(tmp_path, needles, operations=True)
    assert rest == {"name", "digest in hexadecimal", "content in hexadecimal"}


def test_without_erase_gc_deletes_them_with_the_last_old_revision(tmp_path: Path) -> None:
    """`gc --keep 1` deletes what no revision refers to, once it is old."""
    repository = tiny.repository(tmp_path)
    manifest = repository.manifest("colours", 1)
    exemplars = repository.exemplars(manifest.exemplars)
    kept = exemplars.where(np.arange(len(exemplars)) > 0)
    needles = {
        "embedding": exemplars.embeddings[0].tobytes(),
        "thumbnail": exemplars.thumbnails[0],
        "digest": exemplars.digests[0].tobytes(),
    }
    tiny.publish(repository, "colours", kept)
    assert traces(tmp_path, needles) == needles.keys()
    collect(repository, keep=1, spare_seconds=-time.time())
    assert traces(tmp_path, needles) == set()
    assert repository.revisions("colours") == [2]
