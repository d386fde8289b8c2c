"""Draft of a model: content of draft.json, from which a model without a revision is learnt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeAlias

from topwork.bundle.documents import document, from_json, to_json
from topwork.bundle.manifest import Digest, Manifest, ShardRef
from topwork.bundle.numbers import Count, Seed
from topwork.bundle.recipe import Recipe
from topwork.bundle.signing.signatures import Signatures, Signing
from topwork.errors import NotReady
from topwork.inputs.thumbnail import SIDE

FILE = "draft.json"
"""File name, in the directory of the model. Without serving.json the model is a draft."""

MIN_LABELS = 2
"""Raising it refuses more RemoveClass calls: a classifier needs two labels."""

MAX_OPERATIONS = 1_000
"""Number of operations in draft.json; older ones are dropped."""


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """How a model was made over the wire, and its exemplars until it has enough labels to serve."""

    model: str
    backbone: Digest
    backbone_info: Digest
    """sha256 of backbone.json."""
    seed: Seed
    recipe: Recipe
    created: datetime
    request_id: str = ""
    """Idempotency key of the call that made the model; empty: none."""
    request: str = ""
    """sha256 of what that call requested; empty: no idempotency key."""
    source: str = ""
    """Revision that the model is a copy of, ``models/<model>/revisions/<revision>``; empty: none.

    A copy serves from the beginning, and never uses its draft.
    """
    exemplars: tuple[ShardRef, ...] = ()
    images: Count = 0
    """Number of exemplars."""
    operations: tuple[str, ...] = ()
    """Names of the operations that changed it, oldest first."""
    signatures: Signatures | None = None
    """Signatures of the document without this field; None if it is not signed."""
    schema: int = 1

    @property
    def revision(self) -> int:
        """The number of the serving revision: there is none."""
        return 0

    @property
    def preview_pixels(self) -> int:
        """The side of the thumbnails of its exemplars."""
        return SIDE

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels so far, sorted by code point."""
        return tuple(sorted({ref.label for ref in self.exemplars}))

    @property
    def missing_labels(self) -> int:
        """The number of labels that must be added before the model serves."""
        return missing_labels(self.exemplars)

    def changed(self, exemplars: tuple[ShardRef, ...], images: int, operation: str) -> Draft:
        """Return the draft with other exemplars, which ``operation`` gave it."""
        operations = (*self.operations, operation)[-MAX_OPERATIONS:]
        return replace(self, exemplars=exemplars, images=images, operations=operations)


Current: TypeAlias = Manifest | Draft
"""State that a change starts from: the serving revision, or the draft of a model without one."""


def missing_labels(exemplars: tuple[ShardRef, ...]) -> int:
    """Return the number of labels that exemplars lack for a head."""
    return max(0, MIN_LABELS - len({ref.label for ref in exemplars}))


def not_ready(draft: Draft) -> NotReady:
    """Return the error of a call that needs a serving revision."""
    count = len(draft.labels)
    missing = draft.missing_labels
    needed = f"{missing} more {'is' if missing == 1 else 'are'} needed" if missing else "none fits"
    return NotReady(
        f"model {draft.model!r} does not serve yet: it has {count} "
        f"label{'' if count == 1 else 's'}, and {needed}",
        reason="MODEL_NOT_READY",
    )


def to_bytes(draft: Draft, signing: Signing) -> bytes:
    """Return the content of draft.json, signed if there is a signing key."""
    unsigned = replace(draft, signatures=None)
    return to_json(replace(unsigned, signatures=signing.signatures_of(to_json(unsigned))))


def from_bytes(content: bytes, signing: Signing, *, name: str) -> Draft:
    """Decode a draft.json, named ``name`` in errors. Raises Corrupt, also for its signatures."""
    draft = from_json(content, Draft, name=name)
    signing.check_signatures(draft.signatures, to_json(replace(draft, signatures=None)), name=name)
    return draft
