"""Signing of published revisions, and verification of all signatures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from topwork.bundle.signing import signatures
from topwork.bundle.signing.keys import SigningKey
from topwork.bundle.signing.signatures import Signatures, Signing
from topwork.bundle.store import MANIFEST, Repository, revision_key
from topwork.errors import Corrupt, NotFound
from topwork.storage.storage import ABSENT


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

    Verifies all files that the manifest refers to first. Raises NotFound, Corrupt, and Stale if
    another process signs it now.
    """
    with repository.locked(model):
        manifest = repository.manifest(model, revision)
        for read in (repository.head, repository.metrics, repository.report, repository.backbone):
            read(manifest)
        repository.backbone_model(manifest.backbone)
        for ref in manifest.exemplars:
            repository.shard(ref.digest)
        storage, directory = repository.storage, revision_key(manifest)
        content = storage.read(f"{directory}/{MANIFEST}")
        key_of_file, tag = f"{directory}/{signatures.FILE}", ABSENT
        others, before = Signatures(signatures={}), b""
        if storage.exists(key_of_file):
            others = signatures.read(storage, key_of_file)
            before, tag = storage.read_tagged(key_of_file)
        signed = signatures.add(key, content, others)
        if signed == before:
            return False
        storage.write(key_of_file, signed, expected=tag)
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
            try:
                directory = revision_key(repository.manifest(model, revision))
                content = repository.storage.read(f"{directory}/{MANIFEST}")
                keys = signing.check(repository.storage, directory, content)
            except (Corrupt, NotFound) as error:
                problem = str(error)
            yield SignedRevision(
                model=model,
                revision=revision,
                serving=revision == serving,
                keys=keys,
                problem=problem,
            )
