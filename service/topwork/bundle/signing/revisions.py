"""Signing of published revisions, and verification of all signatures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from topwork.bundle import files
from topwork.bundle.signing import signatures
from topwork.bundle.signing.keys import SigningKey
from topwork.bundle.signing.signatures import Signatures, Signing
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, NotFound


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRevision:
    """Result of verifying the signatures of one revision."""

    model: str
    revision: int
    serving: bool
    keys: tuple[str, ...]
    """Ids of the trusted keys that signed it."""
    problem: str
    """Reason why a server refuses the revision; empty if it accepts it."""


def sign(repository: Repository, model: str, revision: int, key: SigningKey) -> bool:
    """Add the signature of ``key`` to a published revision; return False if it has it already.

    Verifies all files that the manifest refers to first. Raises NotFound, Corrupt.
    """
    with repository.locked(model):
        manifest = repository.manifest(model, revision)
        for read in (repository.head, repository.metrics, repository.report, repository.backbone):
            read(manifest)
        repository.backbone_model(manifest.backbone)
        for ref in manifest.exemplars:
            repository.shard(ref.digest)
        directory = repository.serving_file(model).with_name(str(revision))
        content = files.read(directory / "manifest.json")
        path = directory / signatures.FILE
        others = signatures.read(path) if path.exists() else Signatures(signatures={})
        signed = signatures.add(key, content, others)
        if path.exists() and path.read_bytes() == signed:
            return False
        files.write_file(path, signed)
        return True


def verify(repository: Repository, signing: Signing) -> Iterator[SignedRevision]:
    """Verify the signatures of all revisions of all serving models, newest first."""
    for model in repository.models():
        serving = 0
        with contextlib.suppress(Corrupt, NotFound):  # a damaged pointer hides no revision
            serving = repository.serving(model)
        for revision in reversed(repository.revisions(model)):
            keys: tuple[str, ...] = ()
            problem = ""
            directory = repository.serving_file(model).with_name(str(revision))
            try:
                repository.manifest(model, revision)
                keys = signing.check(directory, files.read(directory / "manifest.json"))
            except (Corrupt, NotFound) as error:
                problem = str(error)
            yield SignedRevision(
                model=model,
                revision=revision,
                serving=revision == serving,
                keys=keys,
                problem=problem,
            )
