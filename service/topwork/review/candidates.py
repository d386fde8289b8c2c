"""Lists and groups of candidates, judged by the serving revision: what it has learnt comes last."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.candidates import (
    Candidate,
    CandidateReason,
    CandidateStore,
    Claim,
    Listing,
)
from topwork.bundle.manifest import Manifest
from topwork.bundle.store import Repository
from topwork.errors import Unavailable
from topwork.learning.grouping import MAX_ROWS, Space, group, learn_space
from topwork.review.offer import FAR, usefulness
from topwork.review.queue_index import QueueIndex
from topwork.serving.classify_batch import ImageAnswer, LabelProbability, image_answers
from topwork.serving.registry import Registry, Snapshot
from topwork.serving.request_batch import Scores

T = TypeVar("T")

DOUBTFUL_MARGIN = 0.3
"""Raising it compares more candidates for groups: margin below which an answer is uncertain."""

MOST_MODELS = 8
"""Raising it keeps the candidates of more models in memory, up to about 25 MB each."""

ID_DIGITS = 12
"""Hexadecimal digits of a group's id."""

TOP_K = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A candidate, and what the serving revision says about it."""

    candidate: Candidate
    time: float
    """Time at which it was kept, in seconds since 1970."""
    claim: Claim | None
    answer: ImageAnswer
    """By the serving revision; the stored one if it has another backbone."""
    usefulness: float
    group: str = ""
    """Id of its group; empty: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Candidates that look alike and that the serving revision does not know well."""

    id: str
    rows: tuple[Row, ...]
    """The most typical first."""
    unknown: int
    nearest_label: str
    similarity: float
    known_similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """The candidates of a model at one moment."""

    rows: tuple[Row, ...]
    """Corrections first, then the most useful; those with a claim last."""
    groups: tuple[Group, ...]
    compared: int
    """Number of candidates that were compared for groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateFilter:
    """Filter for lists of candidates; None: any value."""

    reason: CandidateReason | None = None
    group: str | None = None
    label: str | None = None
    suggested_label: str | None = None
    claimed: bool | None = None

    def has(self, row: Row) -> bool:
        """Return True if the row matches."""
        predictions = row.answer.predictions
        found = (
            row.candidate.record.reason,
            row.group,
            predictions[0].label if predictions else "",
            row.candidate.record.suggested_label,
            row.claim is not None,
        )
        wanted = (self.reason, self.group, self.label, self.suggested_label, self.claimed)
        return all(want in {None, have} for want, have in zip(wanted, found, strict=True))


class Candidates:
    """Reads the candidates of models. All state belongs to one event loop."""

    def __init__(self, repository: Repository, registry: Registry) -> None:
        self._repository = repository
        self._registry = registry
        self._indexes: dict[str, QueueIndex] = {}
        self._queues: dict[str, tuple[object, Queue]] = {}
        self._spaces: dict[str, tuple[object, Space]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def queue(self, model: str) -> Queue:
        """Return a model's candidates. Raises NotFound, NotReady, Corrupt, Unavailable."""
        snapshot = await self._registry.snapshot(model)
        async with self._locks.setdefault(model, asyncio.Lock()):
            return await readable(partial(asyncio.to_thread, self._queue, snapshot))

    def listing(self, model: str) -> Listing:
        """Return the names in a model's directory of candidates. Raises OSError."""
        return CandidateStore(self._repository, model).listing()

    def _queue(self, snapshot: Snapshot) -> Queue:
        manifest = snapshot.manifest
        model = manifest.model
        store = CandidateStore(self._repository, model)
        index = self._indexes.setdefault(model, QueueIndex(store))
        index.refresh()
        revision = manifest.data_digest, manifest.revision, manifest.backbone
        state = revision, str(index.listing)
        known = self._queues.get(model)
        if known is not None and known[0] == state:
            return known[1]
        claims = {digest: store.claim(digest) for digest in index.listing.claims}
        rows = _judge(snapshot, index, claims)
        rows, groups, compared = self._grouped(rows, manifest, revision)
        queue = Queue(rows=tuple(rows), groups=tuple(groups), compared=compared)
        for cache in (self._indexes, self._queues, self._spaces):
            while len(cache) > MOST_MODELS:
                cache.pop(next(iter(cache)))
        self._queues[model] = state, queue
        return queue

    def _grouped(
        self, rows: list[Row], manifest: Manifest, revision: object
    ) -> tuple[list[Row], list[Group], int]:
        """Return rows with their groups' ids, the groups, and the number of compared rows."""
        doubtful = [row for row in rows if _is_doubtful(row, manifest)][:MAX_ROWS]
        if not doubtful:
            return rows, [], 0
        space = self._space(manifest, revision)
        points = space(np.stack([row.candidate.embedding for row in doubtful]))
        groups: list[Group] = []
        ids: dict[str, str] = {}
        for members in group(points, alike=space.alike):
            made = _group([doubtful[place] for place in members], points[members], space)
            if not _is_strange(made):
                continue
            ids |= {row.candidate.digest: made.id for row in made.rows}
            groups.append(made)
        groups.sort(key=lambda made: (-made.unknown, -len(made.rows), made.id))
        with_ids = [replace(row, group=ids.get(row.candidate.digest, "")) for row in rows]
        return with_ids, groups, len(doubtful)

    def _space(self, manifest: Manifest, revision: object) -> Space:
        known = self._spaces.get(manifest.model)
        if known is None or known[0] != revision:
            space = learn_space(self._repository.exemplars(manifest.exemplars))
            self._spaces[manifest.model] = known = revision, space
        return known[1]


def _judge(snapshot: Snapshot, index: QueueIndex, claims: dict[str, Claim | None]) -> list[Row]:
    """Return the candidates in order, with the answers of the serving revision."""
    found = sorted(index.candidates.values(), key=lambda candidate: candidate.digest)
    backbone = snapshot.backbone.info.digest
    same = [candidate for candidate in found if candidate.record.backbone == backbone]
    answers: dict[str, ImageAnswer] = {}
    margins: dict[str, float] = {}
    if same:
        embeddings = np.stack([candidate.embedding for candidate in same]).astype(np.float32)
        probabilities, unknown = snapshot.head.run(embeddings)
        highest = np.partition(probabilities, -2, axis=1)[:, -2:]
        scores = Scores(probabilities, unknown, 0.0)
        judged = zip(same, image_answers(snapshot.manifest, scores, TOP_K), highest, strict=True)
        for candidate, answer, (second, first) in judged:
            answers[candidate.digest] = answer
            margins[candidate.digest] = float(first - second)
    rows = []
    for candidate in found:
        record = candidate.record
        answer = answers.get(candidate.digest) or _stored_answer(candidate)
        corrected = record.reason == "corrected"
        rows.append(
            Row(
                candidate=candidate,
                time=index.listing.candidates[candidate.digest].time,
                claim=claims.get(candidate.digest),
                answer=answer,
                usefulness=1.0
                if corrected
                else usefulness(
                    margins.get(candidate.digest, record.margin), answer.unknown_probability
                ),
            )
        )
    return sorted(
        rows,
        key=lambda row: (
            row.claim is not None,
            row.candidate.record.reason != "corrected",
            -row.usefulness,
        ),
    )


def _stored_answer(candidate: Candidate) -> ImageAnswer:
    record = candidate.record
    return ImageAnswer(
        predictions=(LabelProbability(label=record.label, probability=record.probability),),
        unknown_probability=record.unknown_probability,
        is_unknown=record.is_unknown,
    )


def _is_doubtful(row: Row, manifest: Manifest) -> bool:
    """Return True if the row is compared for groups: the serving revision does not know it well."""
    if row.claim is not None or row.candidate.record.backbone != manifest.backbone:
        return False
    first, *others = row.answer.predictions
    margin = first.probability - (others[0].probability if others else 0.0)
    return (row.answer.unknown_probability or 0.0) >= FAR or margin < DOUBTFUL_MARGIN


def _is_strange(group: Group) -> bool:
    """Return True if its images are more probably unknown than known; or the model cannot tell."""
    unknowns = [row.answer.unknown_probability for row in group.rows]
    known = [unknown for unknown in unknowns if unknown is not None]
    return not known or sum(known) / len(known) >= FAR


def _group(rows: list[Row], points: NDArray[np.float32], space: Space) -> Group:
    count = len(rows)
    total = points.sum(axis=0)
    typical = [rows[place] for place in np.argsort(-(points @ total), kind="stable")]
    labels = Counter(row.answer.predictions[0].label for row in rows)
    return Group(
        id=typical[0].candidate.digest[:ID_DIGITS],
        rows=tuple(typical),
        unknown=sum(row.answer.is_unknown for row in rows),
        nearest_label=min(labels, key=lambda label: (-labels[label], label)),
        similarity=(float(total @ total) - count) / (count * (count - 1)),
        known_similarity=space.known_similarity,
    )


async def readable(read: Callable[[], Awaitable[T]]) -> T:
    """Convert the errors of a file system that is unavailable for a moment to Unavailable."""
    try:
        return await read()
    except OSError as error:
        text = f"the review queue cannot be read or written now: {error.strerror}"
        raise Unavailable(text, reason="STORAGE") from error
