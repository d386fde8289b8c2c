"""Audit of folders of photos, before anything is learnt from them."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import ExifTags, Image

from topwork.bundle.exemplars import Exemplars
from topwork.bundle.findings import Finding, Severity, skipped_image
from topwork.bundle.recipe import Recipe
from topwork.bundle.store import Repository
from topwork.errors import InvalidInput
from topwork.inputs.folders import LOSSES, LeftOut
from topwork.inputs.images.heif import open_heif
from topwork.inputs.images.signatures import recognise
from topwork.inputs.preprocess import PreprocessSpec
from topwork.learning.audit import audit_exemplars
from topwork.learning.learn import Judged, learn
from topwork.limits import DEFAULT_LIMITS
from topwork.runtime.cores import available_cores
from topwork.training.embed import ImageSource, Skipped
from topwork_trainer import backbones
from topwork_trainer.backbones.exports import Exports
from topwork_trainer.backbones.prepare import prepare_backbone
from topwork_trainer.cache import EmbeddingCache
from topwork_trainer.data import Photos, scan
from topwork_trainer.fit.attempts import Attempts, OnProgress

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""Gravest first."""

BLURRED = 2.0
"""Enlargement from which on it is a warning.

Measured on 2,000 photos of flowers: shrunk so that they had to be enlarged 1.4 times all cost 0.5
points of accuracy, 2 times 2.0, 2.8 times 2.9, 4 times 4.1, 7 times 8.0.
"""

ELONGATED = 2.0
"""Ratio of the sides from which on the central square leaves out at least half."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""The formats whose headers Pillow reads by itself, in its words."""
_SEQUENCES = {"GIF", "PNG", "WEBP", "TIFF", "AVIF"}
"""Formats whose further frames are pictures of their own; a phone's JPEG has previews there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """The settings of ``topwork-train audit``; each is an option of the same name."""

    data: Path
    repository: Path | None = None
    """Where the backbone's export is, or is to be kept; None: a temporary one."""
    classes: Sequence[str] | None = None
    backbone: str = backbones.DEFAULT
    seed: int = 0
    cache: Path | None = None
    """Directory of embeddings and exported backbones that were made before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What the stand-alone audit found."""

    counts: Mapping[str, int]
    """Usable images of each label, in label order; empty where the folder is of no use."""
    findings: tuple[Finding, ...]
    """The gravest first."""
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    """Decisions about folders, a sentence each."""


def audit(config: AuditConfig, on_progress: OnProgress) -> Audit:
    """Return what is wrong with folders of photos; what no fit could learn from is a finding, too.

    Raises what ``prepare_backbone`` raises for a backbone that cannot be had.
    """
    choice = backbones.parse(config.backbone)
    try:
        # A class with too few photos shall not hide what is wrong with the others.
        lenient = replace(DEFAULT_LIMITS, min_images_per_label=0)
        photos = scan(config.data, classes=config.classes, limits=lenient)
    except (InvalidInput, OSError) as error:
        return Audit(counts={}, findings=(_finding("unusable_folder", "error", str(error), []),))
    with ExitStack() as stack:
        root = config.repository or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        repository = Repository(root)
        on_progress("backbone", 0, 0)
        exports = Exports(config.cache) if config.cache else None
        info = prepare_backbone(repository, choice, exports)
        attempts = Attempts(
            repository=repository,
            sources=photos.train,
            recipe=Recipe(),
            seed=config.seed,
            cores=available_cores(),
            cache=stack.enter_context(EmbeddingCache(config.cache)) if config.cache else None,
            on_progress=on_progress,
        )
        exemplars, skipped = attempts.embed(info, attempts.session(info), stage="embed")
    on_progress("audit", 0, 0)
    empty = dict.fromkeys(set(photos.labels) - {one.label for one in photos.train}, 0)
    findings = [
        *_too_few(empty),
        *audit_files(photos, skipped, info.preprocess),
    ]
    if exemplars is not None:
        judged = _judge(exemplars, config.seed, attempts.cores)
        findings += audit_exemplars(exemplars, judged, seed=config.seed)
    counts = dict(sorted({**empty, **_usable(photos.train, skipped)}.items()))
    return Audit(
        counts=counts,
        findings=gravest_first(findings),
        left_out=photos.left_out,
        notes=photos.notes,
    )


def audit_files(photos: Photos, skipped: Sequence[Skipped], spec: PreprocessSpec) -> list[Finding]:
    """Return what is wrong with the training files that ``scan`` found, in a fixed order.

    ``skipped`` is what ``embed`` returned for them. Of the others the headers are read again, but
    no pixels; what Pillow does not know is left out of that.
    """
    out = {one.name for one in skipped}
    headers: list[_Header] = []
    gone = []
    for source in photos.train:
        if source.name in out:
            continue
        try:
            headers += _read_header(source.path, source, spec)
        except OSError as error:
            message = f"{source.name} was used but can no longer be read: {error}"
            gone.append(_finding("unreadable", "error", message, [source]))
    return [
        *gone,
        *_left_out(skipped),
        *_too_few(_usable(photos.train, skipped)),
        *_enlarged(headers, spec),
        *_oddities(headers, spec),
        *_omitted(photos.left_out),
    ]


def gravest_first(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the findings by severity, those of one severity in the order in which they came."""
    return tuple(sorted(findings, key=lambda one: SEVERITIES.index(one.severity)))


def require_clean(findings: Sequence[Finding]) -> None:
    """Raise InvalidInput (AUDIT_FAILED) with the gravest findings unless all are notes."""
    grave = [one for one in gravest_first(findings) if one.severity != "note"]
    if not grave:
        return
    errors = sum(one.severity == "error" for one in grave)
    told = "; ".join(one.message for one in grave[:3])
    more = f"; and {len(grave) - 3} more" if len(grave) > 3 else ""
    raise InvalidInput(
        f"the audit found errors: {errors}, warnings: {len(grave) - errors}: {told}{more}",
        field="data",
        reason="AUDIT_FAILED",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """What a file says of its picture before the pixels."""

    source: ImageSource
    short: int
    """Pixels of its short side."""
    elongation: float
    """Ratio of the long side to the short one."""
    grey: bool
    turned: bool
    animated: bool


def _read_header(path: Path, source: ImageSource, spec: PreprocessSpec) -> list[_Header]:
    """Return a file's header; none where Pillow alone cannot read it, though the decoder could.

    Raises OSError if the file cannot be opened.
    """
    with path.open("rb") as file:
        is_heif = recognise(file.read(256)) == "HEIF"
        file.seek(0)
        try:
            with (
                open_heif(file.read(), spec, DEFAULT_LIMITS)
                if is_heif
                else Image.open(file, formats=_FORMATS)
            ) as image:
                short, long = sorted(image.size)
                header = _Header(
                    source=source,
                    short=short,
                    elongation=long / short,
                    grey=image.mode in {"1", "L", "LA", "I"} or image.mode.startswith("I;16"),
                    turned=_turned(image),
                    animated=image.format in _SEQUENCES and getattr(image, "is_animated", False),
                )
        except Exception:
            return []
    return [header]


def _turned(image: Image.Image) -> bool:
    if image.format == "PNG" and "exif" not in image.info:
        return False  # Pillow would decode all pixels to look behind them
    try:
        said = image.info.get("turned")  # HEIC: by its properties
        return said or image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:
        return False  # damaged metadata spoils no picture


def _left_out(skipped: Sequence[Skipped]) -> Iterator[Finding]:
    large = [one for one in skipped if one.reason == "IMAGE_TOO_LARGE"]
    unreadable = [one for one in skipped if one.reason not in {"IMAGE_TOO_LARGE", "DUPLICATE"}]
    for one in (*unreadable, *large):
        yield skipped_image(one.name, one.label, reason=one.reason, message=one.message)
    duplicates = [one for one in skipped if one.reason == "DUPLICATE"]
    for label in sorted({one.label for one in duplicates}):
        own = [one for one in duplicates if one.label == label]
        message = f"{len(own)} of the files labelled {label!r} repeat others pixel by pixel"
        yield _finding("exact_duplicate", "note", f"{message} and were left out", own)


def _omitted(left_out: Sequence[LeftOut]) -> Iterator[Finding]:
    for one in left_out:
        yield Finding(
            kind=one.reason,
            severity="warning" if one.reason in LOSSES else "note",
            message=f"{one} {'was' if len(one.names) == 1 else 'were'} left out",
            images=one.names,
            labels=(),
        )


def _too_few(counts: Mapping[str, int]) -> Iterator[Finding]:
    least = DEFAULT_LIMITS.min_images_per_label
    for label, count in sorted(counts.items()):
        if count < least:
            message = f"label {label!r} has {count} usable images; at least {least} are needed"
            yield replace(_finding("too_few_images", "error", message, []), labels=(label,))


def _enlarged(headers: Sequence[_Header], spec: PreprocessSpec) -> Iterator[Finding]:
    kinds: tuple[tuple[str, Severity, float, float], ...] = (
        ("tiny", "warning", BLURRED, float("inf")),
        ("enlarged", "note", 1 + 1e-9, BLURRED),
    )
    for kind, severity, least, limit in kinds:
        found = [one for one in headers if least <= spec.resize / one.short < limit]
        if found:
            worst = min(found, key=lambda one: (one.short, one.source.name))
            message = (
                f"{len(found)} of {len(headers)} images have less than the {spec.resize} pixels "
                f"that their short side is scaled to, {worst.source.name} only {worst.short}: "
                f"it is enlarged {spec.resize / worst.short:.1f} times"
            )
            yield _finding(kind, severity, message, [one.source for one in found])


def _oddities(headers: Sequence[_Header], spec: PreprocessSpec) -> Iterator[Finding]:
    grey = [one for one in headers if one.grey]
    long = [one for one in headers if one.elongation >= ELONGATED]
    longest = max((one.elongation for one in long), default=1.0)
    kept = (spec.crop / spec.resize) ** 2 / longest
    for kind, found, what in (
        (
            "elongated",
            long,
            f"sides of {ELONGATED:g} to 1 or more: down to {100 * kept:.0f} % of them is seen, "
            "the central square",
        ),
        ("turned", [one for one in headers if one.turned], "to be turned, by EXIF, and are"),
        ("greyscale", grey if len(grey) < len(headers) else [], "no colour; the others do"),
        (
            "animated",
            [one for one in headers if one.animated],
            "several frames, of which only the first is used",
        ),
    ):
        if found:
            message = f"{len(found)} of {len(headers)} images have {what}"
            yield _finding(kind, "note", message, [one.source for one in found])


def _judge(exemplars: Exemplars, seed: int, cores: int) -> Judged | None:
    if len(exemplars.labels) < 2:
        return None
    return learn(exemplars, seed=seed, threads=cores).judged


def _usable(sources: Sequence[ImageSource], skipped: Sequence[Skipped]) -> dict[str, int]:
    counts = Counter(one.label for one in sources)
    counts.subtract(one.label for one in skipped)
    return dict(counts)


def _finding(
    kind: str, severity: Severity, message: str, found: Sequence[ImageSource | Skipped]
) -> Finding:
    return Finding(
        kind=kind,
        severity=severity,
        message=message,
        images=tuple(one.name for one in found),
        labels=tuple(sorted({one.label for one in found})),
    )
