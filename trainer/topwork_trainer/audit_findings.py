"""Findings of an audit that inputs of all kinds have: unusable files, duplicates, too few."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from topwork.bundle.findings import Finding, Severity, skipped_image
from topwork.errors import ImageError
from topwork.inputs.data.photos import Photo
from topwork.inputs.folders import LOSSES, LeftOut
from topwork.inputs.image_source import ImageSource
from topwork.limits import DEFAULT_LIMITS
from topwork.training.embed import Skipped
from topwork_trainer.data import Photos

T = TypeVar("T")


def usable_images(sources: Sequence[ImageSource], skipped: Sequence[Skipped]) -> dict[str, int]:
    """Return the number of images of each label that were not skipped."""
    counts = Counter(source.label for source in sources)
    counts.subtract(image.label for image in skipped)
    return dict(counts)


def too_few_images(counts: Mapping[str, int], noun: str = "image") -> Iterator[Finding]:
    """Yield a finding for each label with fewer usable images than a fit needs."""
    least = DEFAULT_LIMITS.min_images_per_label
    for label, count in sorted(counts.items()):
        if count < least:
            yield Finding(
                kind="too_few_images",
                severity="error",
                message=f"label {label!r} has {count} usable {noun}s; at least {least} are needed",
                images=(),
                labels=(label,),
            )


def skipped_findings(skipped: Sequence[Skipped], repeated: str) -> Iterator[Finding]:
    """Yield the findings about files that cannot be used, and duplicates.

    ``repeated`` says what duplicates have in common.
    """
    large = [image for image in skipped if image.reason.endswith("_TOO_LARGE")]
    unreadable = [image for image in skipped if image not in large and image.reason != "DUPLICATE"]
    for image in (*unreadable, *large):
        yield skipped_image(image.name, image.label, reason=image.reason, message=image.message)
    duplicates = [image for image in skipped if image.reason == "DUPLICATE"]
    for label in sorted({image.label for image in duplicates}):
        same_label = [image for image in duplicates if image.label == label]
        message = f"{len(same_label)} of the files labelled {label!r} repeat others {repeated}"
        yield finding("exact_duplicate", "note", f"{message} and were left out", same_label)


def left_out_findings(left_out: Sequence[LeftOut]) -> Iterator[Finding]:
    """Yield the findings about files that no class has."""
    for group in left_out:
        yield Finding(
            kind=group.reason,
            severity="warning" if group.reason in LOSSES else "note",
            message=f"{group} {'was' if len(group.names) == 1 else 'were'} left out",
            images=group.names,
            labels=(),
        )


def finding(
    kind: str, severity: Severity, message: str, images: Sequence[ImageSource | Skipped]
) -> Finding:
    """Return a finding about some inputs."""
    return Finding(
        kind=kind,
        severity=severity,
        message=message,
        images=tuple(image.name for image in images),
        labels=tuple(sorted({image.label for image in images})),
    )


@dataclass(frozen=True, slots=True)
class Measured(Generic[T]):
    """A training file, and what was measured of its content."""

    photo: Photo
    value: T


def measure_used(
    photos: Photos, skipped: Sequence[Skipped], measure: Callable[[bytes], T]
) -> tuple[list[Measured[T]], list[Finding]]:
    """Return what ``measure`` returns of each training file that is used.

    Beside it a finding for each file that can no longer be read: ``measure`` may raise ImageError.
    """
    skipped_names = {each.name for each in skipped}
    measured, gone = [], []
    for photo in photos.train:
        if photo.name in skipped_names:
            continue
        try:
            measured.append(Measured(photo, measure(photo.read())))
        except (OSError, ImageError) as error:
            message = f"{photo.name} was used but can no longer be read: {error}"
            gone.append(finding("unreadable", "error", message, [photo]))
    return measured, gone
