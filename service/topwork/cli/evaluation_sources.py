"""Answers to the photos of a test set: from a server, or from a repository without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from topwork import Client, ImageResult
from topwork.bundle.exemplars import Exemplars
from topwork.bundle.manifest import Manifest, check_may_serve
from topwork.bundle.store import Repository
from topwork.cli.image_rows import Classify, answered, interrupts
from topwork.cli.labelled_data import Source
from topwork.errors import InvalidInput
from topwork.inputs.data.photos import Photo
from topwork.learning.evaluation import Answers
from topwork.learning.leakage import related_rows, repeated_rows
from topwork.learning.unknown import is_unknown
from topwork.local import load_head, open_backbone
from topwork.report.formatting import several
from topwork.runtime.cores import available_cores
from topwork.training.embed import Skipped, embed

ALL = 2**31 - 1
"""Number of predictions that is at least the number of a model's labels."""

OnImage = Callable[[], None]
"""Called once for each image that a revision answered or skipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """Photos that every revision answered, with the answers of each revision in their order."""

    photos: tuple[Photo, ...]
    answers: tuple[Answers, ...]
    """By revision, in the order of the question."""
    skipped: tuple[Skipped, ...]
    """Photos that are unreadable or, in a repository, repeat another photo of the same label."""
    notes: tuple[str, ...] = ()


def from_repository(
    repository: Repository,
    model: str,
    revisions: Sequence[int],
    photos: Sequence[Photo],
    on_image: OnImage,
) -> Answered:
    """Return the answers of revisions in a repository, where 0 is the serving one.

    Photos that repeat a training image of a revision, exactly or nearly, and photos of a group that
    was trained on are left out, as ``topwork-train fit --test`` does. Raises NotFound, NotReady if
    a revision was rejected, InvalidInput if no photo is left, and Corrupt.
    """
    manifests = [
        repository.manifest(model, revision or repository.serving(model)) for revision in revisions
    ]
    embedded = Embedded(repository, photos, on_image)
    used: list[tuple[Manifest, dict[_Key, int], Exemplars]] = []
    repeated, related = set[_Key](), set[_Key]()
    for manifest in manifests:
        check_may_serve(manifest)
        exemplars = embedded.exemplars(manifest)
        keys = [*zip(_labels(exemplars), exemplars.names, strict=True)]
        trained = repository.exemplars(manifest.exemplars)
        repeated |= {keys[row] for row in np.flatnonzero(repeated_rows(exemplars, trained))}
        related |= {keys[row] for row in np.flatnonzero(related_rows(exemplars, trained))}
        used.append((manifest, {key: row for row, key in enumerate(keys)}, exemplars))
    left = repeated | related
    fresh = [
        photo
        for photo in photos
        if _key(photo) not in left and all(_key(photo) in rows for _, rows, _ in used)
    ]
    notes = [
        f"{several(len(found), 'photo')} left out: {reason}"
        for found, reason in (
            (repeated, "in the training set, exactly or nearly"),
            (related - repeated, "of groups in the training set"),
        )
        if found
    ]
    reasons = [*notes, *embedded.reasons()]
    if reasons and not any(photo.label in manifests[0].labels for photo in fresh):
        text = f"no photo of a class of revision {manifests[0].revision} can be evaluated"
        raise InvalidInput("; ".join([text, *reasons]), field="data")
    return Answered(
        photos=tuple(fresh),
        answers=tuple(
            _answers(repository, manifest, exemplars, [rows[_key(photo)] for photo in fresh])
            for manifest, rows, exemplars in used
        ),
        skipped=tuple(embedded.skipped),
        notes=tuple(notes),
    )


def from_server(
    client: Client,
    model: str,
    revisions: Sequence[int],
    photos: Sequence[Photo],
    source: Source,
    on_image: OnImage,
) -> Answered:
    """Return the answers of revisions on a server, where 0 is the one that serves at the start.

    Raises CallFailed, and InvalidInput if no photo can be classified.
    """
    serving = client.model(model).serving_revision.revision
    collected: list[_Collected] = []
    skipped: dict[int, Skipped] = {}
    for revision in revisions:
        stream = partial(client.classify_stream, model, revision=revision or serving, top_k=ALL)
        found = _Collected(revision or serving)
        collected.append(found)
        for number, result in _streamed(photos, source, stream):
            on_image()
            if isinstance(result, str):
                photo = photos[number]
                skipped[number] = Skipped(
                    name=photo.name, label=photo.label, reason="IMAGE_UNREADABLE", message=result
                )
            else:
                found.add(number, result)
    common = [number for number in range(len(photos)) if number not in skipped]
    if not common:
        first = next(iter(skipped.values()))
        raise InvalidInput(
            f"no photo can be evaluated; {first.name}: {first.message}", field="data"
        )
    return Answered(
        photos=tuple(photos[number] for number in common),
        answers=tuple(found.answers(common) for found in collected),
        skipped=tuple(skipped.values()),
    )


# In a repository

_Key = tuple[str, str]
"""Label and name of a photo: unique, because strangers have no label."""


def _key(photo: Photo) -> _Key:
    return photo.label, photo.name


def _labels(exemplars: Exemplars) -> list[str]:
    return [exemplars.labels[target] for target in exemplars.targets]


class Embedded:
    """Exemplars of the photos, embedded once with each backbone."""

    def __init__(self, repository: Repository, photos: Sequence[Photo], on_image: OnImage) -> None:
        self._repository = repository
        self._photos = photos
        self._on_image = on_image
        self._exemplars: dict[str, Exemplars] = {}
        self.skipped: list[Skipped] = []
        """Photos that the first backbone skipped."""

    def exemplars(self, manifest: Manifest) -> Exemplars:
        """Return the exemplars of a revision's backbone. Raises InvalidInput if there are none."""
        info = self._repository.backbone(manifest)
        if info.digest not in self._exemplars:
            used = open_backbone(self._repository, info)
            found, skipped = embed(
                self._photos,
                used.session,
                used.info.preprocess,
                cores=available_cores(),
                on_image=self._on_image,
            )
            self.skipped = self.skipped or skipped
            if found is None:
                text = "; ".join(["no photo can be evaluated", *self.reasons()])
                raise InvalidInput(text, field="data")
            self._exemplars[info.digest] = found
        else:
            for _ in self._photos:
                self._on_image()
        return self._exemplars[info.digest]

    def reasons(self) -> list[str]:
        """Return the reason why the first skipped photo cannot be used, if there is one."""
        return [f"{each.name}: {each.message}" for each in self.skipped[:1]]


def _answers(
    repository: Repository, manifest: Manifest, exemplars: Exemplars, rows: Sequence[int]
) -> Answers:
    head = load_head(repository, manifest)
    probabilities, unknown = head.run(exemplars.embeddings[list(rows)])
    threshold = manifest.chosen.unknown_threshold
    return Answers(
        revision=manifest.revision,
        labels=manifest.labels,
        probabilities=probabilities,
        unknown=unknown,
        is_unknown=None if unknown is None or threshold is None else is_unknown(unknown, threshold),
    )


# On a server


def _streamed(
    photos: Sequence[Photo],
    source: Source,
    stream: Classify,
) -> Iterator[tuple[int, ImageResult | str]]:
    """Yield the number of each photo with its result, or the reason why it has none."""
    numbers = range(len(photos))
    with (
        closing(
            answered(numbers, lambda number: source.content(photos[number]), stream)
        ) as answers,
        interrupts() as check_interrupt,
    ):
        for number, answer in answers:
            check_interrupt()
            if isinstance(answer, str):
                yield number, answer
            elif answer.result.error is not None:
                yield number, answer.result.error.status.message
            else:
                yield number, answer.result


class _Collected:
    """Answers of one revision, by the number of the photo."""

    def __init__(self, revision: int) -> None:
        self._revision = revision
        self._labels: dict[str, int] = {}
        self._rows: dict[int, NDArray[np.float32]] = {}
        self._unknown: dict[int, tuple[float, bool]] = {}

    def add(self, number: int, result: ImageResult) -> None:
        """Add an answer with the probabilities of all labels."""
        if not self._labels:
            labels = sorted(prediction.label for prediction in result.predictions)
            self._labels = {label: index for index, label in enumerate(labels)}
        row = np.zeros(len(self._labels), dtype=np.float32)
        for label, probability in result.predictions:
            row[self._labels[label]] = probability
        self._rows[number] = row
        if result.unknown_probability is not None:
            self._unknown[number] = result.unknown_probability, bool(result.is_unknown)

    def answers(self, numbers: Sequence[int]) -> Answers:
        """Return the answers to these photos."""
        unknown = [self._unknown[number] for number in numbers if number in self._unknown]
        return Answers(
            revision=self._revision,
            labels=tuple(self._labels),
            probabilities=np.stack([self._rows[number] for number in numbers]),
            unknown=np.array([score for score, _ in unknown], np.float32) if unknown else None,
            is_unknown=np.array([called for _, called in unknown], bool) if unknown else None,
        )
