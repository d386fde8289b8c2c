"""Fit: trains on labelled photos and publishes a revision."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from topwork.bundle.findings import Finding, skipped_image
from topwork.bundle.manifest import BackboneInfo, Manifest
from topwork.bundle.metrics import Metrics
from topwork.bundle.names import check_model
from topwork.bundle.recipe import Recipe
from topwork.bundle.signing.signatures import SigningFiles
from topwork.bundle.spaces import put_space
from topwork.bundle.store import Repository
from topwork.errors import InvalidInput
from topwork.inputs.data.vectors import is_vectors
from topwork.inputs.embeddings import EmbeddingSpec
from topwork.inputs.folders import LeftOut
from topwork.inputs.thumbnail import SIDE
from topwork.learning.audit import audit_exemplars
from topwork.printable import file_name
from topwork.report.content import Making, RankedBackbone
from topwork.report.formatting import several
from topwork.runtime.cores import available_cores
from topwork.training.embed import Skipped
from topwork.training.publish import publish
from topwork_trainer import backbones
from topwork_trainer.audit import require_clean
from topwork_trainer.audit_files import audit_files
from topwork_trainer.backbones import BackboneChoice
from topwork_trainer.backbones.exports import Exports
from topwork_trainer.backbones.plans import AUTO_POOL
from topwork_trainer.backbones.prepare import find_imported, find_own_weights, prepare_backbone
from topwork_trainer.cache import EmbeddingCache
from topwork_trainer.data import add_test_set, scan
from topwork_trainer.data.photos import Photos
from topwork_trainer.data.vectors import scan_vectors
from topwork_trainer.finetuning.settings import FinetuneConfig
from topwork_trainer.fit.attempts import Attempt, Attempts, OnStageProgress
from topwork_trainer.fit.embedded import read_embedded
from topwork_trainer.fit.evaluation_gate import JudgedFit
from topwork_trainer.fit.held_out import SplitResult, judge
from topwork_trainer.fit.images import keep_images
from topwork_trainer.fit.quantise_phase import quantise_backbone
from topwork_trainer.ranking.rank import explain, select

AUTO = "auto"
Precision = Literal["fp32", "int8", "auto"]
_PutBackbone = Callable[[Repository], BackboneInfo]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    """The settings of ``topwork-train fit``; each is an option of the same name."""

    data: Path
    model: str
    repository: Path
    embedded: bool = False
    """True: ``data`` is the directory, or the pattern of the parts, of an embedding run."""
    classes: Sequence[str] | None = None
    space: str = ""
    """Name of what computed the embeddings, if ``data`` has such; empty: that of the file."""
    test: Path | None = None
    """Test set, in any layout of ``data``, on which the published model is evaluated."""
    backbone: str = backbones.DEFAULT
    """Notation of ``backbones.parse``, or ``auto``: the best backbone on a sample of the photos."""
    weights: Path | None = None
    image_size: int | Literal["auto"] | None = None
    """Side of the input in pixels; None: the backbone's own."""
    views: int | Literal["auto"] = 1
    recipe: Recipe = Recipe()  # noqa: RUF009 # frozen, so it can be shared
    finetuning: FinetuneConfig = FinetuneConfig()  # noqa: RUF009 # frozen, so it can be shared
    publish: Literal["better", "finetuned"] = "better"
    """``better``: publish the fine-tuned backbone only if it is significantly better."""
    precision: Precision = "fp32"
    seed: int = 0
    drop_suspects: bool = False
    """True: leave out photos whose label is suspected, and learn again."""
    keep_images: bool = False
    """True: store the training photos in the repository, as uploads are."""
    preview_pixels: int = SIDE
    """Side of the thumbnails of training photos, also of those that changes add later."""
    strict: bool = False
    """True: refuse to train if the audit has errors or warnings."""
    cache: Path | None = None
    """Directory of cached embeddings and exported backbones; None: no cache."""
    signing_key: Path | None = None
    """File of the private key that signs the revision."""
    command: str = "topwork_trainer.fit.fit"
    """Command line to show in the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """Published revision, its metrics, and decisions made by the fit."""

    manifest: Manifest
    backbone: BackboneInfo
    metrics: Metrics
    skipped: Sequence[Skipped]
    findings: Sequence[Finding]
    notes: Sequence[str]
    """Decisions of the fit and their reasons, a sentence each."""
    held_out: Sequence[SplitResult]
    """Accuracy on each held-out split."""
    left_out: Sequence[LeftOut]
    report: Path
    seconds: dict[str, float]
    """Duration of each stage, and ``total``."""


def fit(config: FitConfig, on_progress: OnStageProgress) -> FitResult:
    """Train a head, optionally fine-tune the backbone, publish a revision and serve it.

    The backbone is exported once per repository, or once for all with ``cache``. Unusable photos
    are left out and returned. If the data cannot be learnt it raises InvalidInput, if fine-tuning
    fails Diverged, and publishes nothing. Raises NotReady if the gate of an evaluation set rejects
    the published revision.
    """
    check_model(config.model)
    config, photos, known = _load(config)
    signing = SigningFiles(signing_key=config.signing_key).read(publishes=True)
    repository = Repository(config.repository, signing)
    repository.check_not_deleted(config.model)
    watch = _Stopwatch(on_progress)
    directory = config.cache if known is None else None  # there is nothing to compute
    with EmbeddingCache(directory) if directory else contextlib.nullcontext() as cache:
        attempts = Attempts(
            repository=repository,
            sources=photos.train,
            recipe=config.recipe,
            seed=config.seed,
            cores=available_cores(),
            cache=cache,
            exports=Exports(directory) if directory else None,
            preview_pixels=config.preview_pixels,
            on_progress=watch,
        )
        ranked: Sequence[RankedBackbone] = ()
        if known is not None:
            choice, info = None, known(repository)
        else:
            choice, ranked = _choose(config, attempts)
            watch("backbone", 0, 0)
            if config.finetuning.unfreeze != "none":
                _check_tunable(repository, choice)
            info = prepare_backbone(repository, choice, attempts.exports)
        attempt = attempts.attempt(info)
        findings = [
            *_audit(photos, attempt),
            *audit_exemplars(attempt.exemplars, attempt.learned.judged, seed=config.seed),
        ]
        if config.strict:
            require_clean(findings)
        notes = [*photos.notes, *([explain(ranked)] if ranked else [])]
        if config.drop_suspects:
            attempts, attempt = attempts.without_suspects(attempt)
            dropped = several(len(attempts.dropped), "photo")
            notes.append(f"Left out: {dropped} whose label is suspected")
        checkpoints = config.repository / "checkpoints" / config.model
        if choice is not None and config.finetuning.unfreeze != "none":
            attempt = _finetune(config, attempts, attempt, choice, checkpoints, notes)
        gate = None
        if config.precision != "fp32":
            int8, gate = quantise_backbone(attempts, attempt)
            notes.append(gate.why)
            if gate.taken or config.precision == "int8":
                attempt = int8
        held_out = [judge(attempts, attempt, *split) for split in photos.held_out.items()]
        notes += map(str, held_out)
    if config.keep_images:
        watch("images", 0, 0)
        keep_images(repository, photos.train, attempt.exemplars)
    watch("publish", 0, 0)
    sets = JudgedFit.of(repository, config.model, attempt)
    manifest = publish(
        repository,
        attempt.exemplars,
        attempt.learned,
        model=config.model,
        backbone=attempt.backbone.digest,
        shards=sets.shards,
        seed=config.seed,
        recipe=config.recipe,
        preview_pixels=config.preview_pixels,
        precision_gate=gate,
        origin=sets.origin,
        making=Making(
            command=config.command,
            findings=(*findings, *sets.verdict.findings),
            backbones=tuple(ranked),
            notes=tuple(notes),
        ),
    )
    sets.record(manifest.revision)
    repository.set_serving(config.model, manifest.revision, why="fit")
    if config.finetuning.unfreeze != "none":  # otherwise the checkpoints are another fit's
        shutil.rmtree(checkpoints, ignore_errors=True)
    return FitResult(
        manifest=manifest,
        backbone=attempt.backbone,
        metrics=attempt.learned.metrics,
        skipped=attempt.skipped,
        findings=[*findings, *sets.verdict.findings],
        notes=notes,
        held_out=held_out,
        left_out=photos.left_out,
        report=repository.report_file(manifest),
        seconds=watch.seconds(),
    )


def _load(config: FitConfig) -> tuple[FitConfig, Photos, _PutBackbone | None]:
    """Return the settings, the data to train on, and what stores its backbone, if it has one.

    Raises InvalidInput.
    """
    if config.embedded:
        given = read_embedded(config)
        pixels = given.plan.preview_pixels
        return replace(config, preview_pixels=pixels), given.photos, given.put_backbone
    photos, space = _scan(config)
    return config, photos, None if space is None else partial(put_space, spec=space)


def _scan(config: FitConfig) -> tuple[Photos, EmbeddingSpec | None]:
    """Return the data to train on, and the space if they are embeddings. Raises InvalidInput."""
    if is_vectors(config.data):
        _check_vectors(config)
        return scan_vectors(config.data, space=config.space, classes=config.classes)
    if config.space:
        raise InvalidInput("--space needs embeddings, .npy or .npz", field="space")
    photos = scan(config.data, classes=config.classes)
    return photos if config.test is None else add_test_set(photos, config.test), None


def _audit(photos: Photos, attempt: Attempt) -> list[Finding]:
    """Return the findings about files, or about embeddings that cannot be used."""
    if attempt.backbone.has_graph:
        return audit_files(photos, attempt.skipped, attempt.backbone.image_spec)
    return [
        skipped_image(each.name, each.label, reason=each.reason, message=each.message)
        for each in attempt.skipped
    ]


def _check_vectors(config: FitConfig) -> None:
    """Raise InvalidInput for settings that need photos."""
    default = FitConfig(data=config.data, model=config.model, repository=config.repository)
    for name in (
        *("test", "backbone", "weights", "image_size", "views", "finetuning", "precision"),
        "preview_pixels",
    ):
        if getattr(config, name) != getattr(default, name):
            field = "unfreeze" if name == "finetuning" else name
            raise InvalidInput(
                f"--{field.replace('_', '-')} needs photos, and {file_name(config.data)} has "
                "embeddings",
                field=field,
            )


def _check_tunable(repository: Repository, choice: BackboneChoice) -> None:
    """Raise InvalidInput if a backbone cannot be fine-tuned."""
    if find_imported(repository, choice):
        raise InvalidInput(
            f"{choice.name!r} was added from an ONNX file, which cannot be fine-tuned",
            field="unfreeze",
        )
    if added := find_own_weights(repository, choice):
        raise InvalidInput(
            f"{str(choice)!r} was added with the weights in {added.source}: pass --weights"
            " to fine-tune them",
            field="unfreeze",
        )


def _choose(
    config: FitConfig, attempts: Attempts
) -> tuple[BackboneChoice, Sequence[RankedBackbone]]:
    """Return the chosen backbone, and the ranking if backbones were compared."""
    if config.backbone == AUTO:
        name, size, views = None, config.image_size, config.views
    else:
        choice = backbones.parse(config.backbone)
        name, size = choice.name, config.image_size or choice.image_size
        views = choice.views if config.views == 1 else config.views
        if AUTO not in {size, views} and not name.endswith(AUTO_POOL):
            assert not isinstance(size, str)
            assert not isinstance(views, str)
            return BackboneChoice(
                name=name, weights=config.weights, image_size=size, views=views
            ), []
    return select(attempts, name=name, weights=config.weights, image_size=size, views=views)


def _finetune(
    config: FitConfig,
    attempts: Attempts,
    frozen: Attempt,
    choice: BackboneChoice,
    checkpoints: Path,
    notes: list[str],
) -> Attempt:
    """Return the attempt with the fine-tuned backbone, or ``frozen`` if it is not better."""
    from topwork_trainer.fit.finetune_phase import finetune_backbone

    always = config.publish == "finetuned"
    tuned, verdict = finetune_backbone(
        attempts, frozen, choice, config.finetuning, always=always, checkpoints=checkpoints
    )
    if tuned is None:
        used = "not significant, so the frozen backbone is used"
    elif verdict.proven:
        used = "the fine-tuned backbone is used"
    else:
        used = "not significant, but the fine-tuned backbone is used as configured"
    notes.append(f"fine-tuning ({config.finetuning.unfreeze}) {verdict}: {used}")
    return tuned or frozen


class _Stopwatch:
    """Progress callback that measures the seconds of each stage and forwards the progress."""

    def __init__(self, on_progress: OnStageProgress) -> None:
        self._on_progress = on_progress
        self._start = self._last = time.perf_counter()
        self._stage = ""
        self._laps: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            if self._stage:
                self._lap()
            else:
                self._start = self._last = time.perf_counter()
            self._stage = stage
        self._on_progress(stage, done, total)

    def seconds(self) -> dict[str, float]:
        self._lap()
        return {**self._laps, "total": self._last - self._start}

    def _lap(self) -> None:
        now = time.perf_counter()
        self._laps[self._stage] = self._laps.get(self._stage, 0.0) + now - self._last
        self._last = now
