"""Writer of this version's golden files: ``PYTHONPATH=tests python -m golden.make``, at a release.

``tests/golden/<version>/`` gets a JSON file for every stored document (the access file,
``_File.toml``, is written by hand), and ``left.tar.xz``, written by a fit, a server and a worker:

    repository/     one model with operations of all outcomes, also a waiting and a cancelled one
    cache/          the trainer's cache of embeddings
    expected.json   this version's answers
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.longrunning import operations_pb2
from support import servers, tiny
from support.pictures import picture

import topwork
from golden.documents import DOCUMENTS
from topwork import CallFailed, Client, progress
from topwork.bundle.documents import to_json
from topwork.bundle.store import Repository
from topwork.training.embed import EmbeddedRow
from topwork.v1 import change_pb2 as change_pb
from topwork_trainer.cache import EmbeddingCache
from topwork_trainer.finetuning import checkpoints

HERE = Path(__file__).parent
SIZE = (12, 10)
"""Size of the pictures, small since archives are never deleted."""


def named_pictures(label: str, first: int = 0) -> list[tuple[str, bytes]]:
    """Return six pictures with their names."""
    return [(f"{label}-{n}", picture(label, n, size=SIZE)) for n in range(first, first + 6)]


def make_repository(root: Path) -> None:
    """Make a repository by a fit, a server and a worker."""
    repository = Repository(root)
    labels = ("amber", "blue", "crimson", "green")
    images = {label: [content for _, content in named_pictures(label)] for label in labels}
    tiny.publish(repository, "colours", tiny.embed_pictures(images))
    with servers.running(root, executor="golden") as server, Client(server.address) as client:

        def wait(operation: operations_pb2.Operation) -> None:
            for _ in client.watch(operation.name):
                pass

        wait(client.add_class("colours", "violet", named_pictures("violet")))
        wait(client.rename_class("colours", "blue", "azure"))
        wait(client.add_class("colours", "junk", [(f"{n}.png", b"junk") for n in range(6)]))
        no_conflicts = change_pb.ChangeOptions(gate=change_pb.Gate(max_conflicts=0))
        wait(client.add_class("colours", "conflict", named_pictures("amber"), options=no_conflicts))
        validate = change_pb.ChangeOptions(validate_only=True)
        wait(client.retrain("colours", options=validate))
        client.rollback("colours")
        client.pin_revision("colours", 1)
        server.stop()
    with servers.running(root, worker=False) as server, Client(server.address) as client:
        client.cancel(client.retrain("colours").name)
        client.add_class("colours", "zircon", named_pictures("zircon"))
        server.stop()
    checkpoints.save(root / "checkpoints" / "colours.pt", "run", {"step": 3, "w": torch.ones(2)})


def expected(root: Path) -> dict[str, Any]:
    """Return the answers of this version's server for a repository."""
    with servers.running(root, worker=False) as server, Client(server.address) as client:
        model = client.model("colours")
        answer = client.classify("colours", [picture("violet", 50, size=SIZE)])
        return {
            "serving": model.serving_revision.revision,
            "revisions": list(model.revisions),
            "pinned": list(model.pinned_revisions),
            "probabilities": dict(answer.results[0].predictions),
            "operations": [
                {
                    "name": operation.name,
                    "kind": change_pb.ChangeKind.Name(progress(operation).kind),
                    "label": progress(operation).label,
                    "done": operation.done,
                    "reason": CallFailed(operation.raw.error).reason
                    if operation.raw.HasField("error")
                    else "",
                }
                for operation in client.operations()
            ],
        }


def cache(directory: Path) -> None:
    """Make a cache of embeddings with one row."""
    row = EmbeddedRow(
        digest=bytes(range(32)),
        fingerprint=np.arange(32, dtype=np.uint8),
        embedding=np.linspace(0, 1, 4, dtype=np.float32),
        thumbnail=b"a thumbnail",
    )
    from topwork_trainer.cache import _BackboneCache

    with EmbeddingCache(directory) as opened:
        _BackboneCache(opened, bytes(32), 4).put(b"c" * 32, row)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def main() -> None:
    """Write the files of this version."""
    target = HERE / topwork.__version__
    target.mkdir(exist_ok=True)
    for document in DOCUMENTS:
        (target / f"{type(document).__name__}.json").write_bytes(to_json(document))
    with tempfile.TemporaryDirectory() as directory:
        left = Path(directory)
        make_repository(left / "repository")
        (left / "expected.json").write_text(json.dumps(expected(left / "repository"), indent=1))
        with closing(sqlite3.connect(left / "repository" / "operations.sqlite")) as database:
            database.execute("VACUUM")
        cache(left / "cache")
        with tarfile.open(target / "left.tar.xz", "w:xz", preset=9) as archive:
            for path in sorted(left.iterdir()):
                archive.add(path, path.name, filter=_plain)


if __name__ == "__main__":
    main()
