"""Fit: trains on labelled photos and publishes a revision."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from topwork.bundle.findings import Finding
from topwork.bundle.manifest import BackboneInfo, Manifest
from topwork.bundle.metrics import Metrics
from topwork.bundle.names import check_model
from topwork.bundle.opening import open_repository
from topwork.bundle.recipe import Recipe
from topwork.bundle.signing.signatures import SigningFiles
from topwork.bundle.store import Repository, report_key
from topwork.errors import InvalidInput
from topwork.inputs.folders import LeftOut
from topwork.inputs.thumbnail import SIDE
from topwork.learning.audit import audit_exemplars
from topwork.report.content import Making, RankedBackbone
from topwork.report.formatting import several
from topwork.runtime.cores import available_cores
from topwork.storage.files import sha256
from topwork.storage.location import Location, cache_directory
from topwork.training.embed import Skipped
from topwork.training.publish import publish
from topwork_trainer import backbones
from topwork_trainer.audit import require_clean
from topwork_trainer.audit_inputs import audit_inputs
from topwork_trainer.backbones import BackboneChoice
from topwork_trainer.backbones.exports import Exports
from topwork_trainer.backbones.plans import AUTO_POOL
from topwork_trainer.backbones.prepare import (
    check_kind,
    find_imported,
    find_own_weights,
    prepare_backbone,
)
from topwork_trainer.cache import EmbeddingCache
from topwork_trainer.finetuning.settings import FinetuneConfig
from topwork_trainer.fit.attempts import Attempt, Attempts, OnStageProgress
from topwork_trainer.fit.data import check_backbone, load_data
from topwork_trainer.fit.evaluation_gate import JudgedFit
from topwork_trainer.fit.held_out import SplitResult, judge
from topwork_trainer.fit.images import keep_images
from topwork_trainer.fit.quantise_phase import quantise_backbone
from topwork_trainer.fit.stopwatch import Stopwatch
from topwork_trainer.kinds import NOUNS
from topwork_trainer.ranking.rank import explain, select

AUTO = "auto"
Precision = Literal["fp32", "int8", "auto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    """The settings of ``topwork-train fit``; each is an option of the same name."""

    data: Location
    """A path, or of an embedding run also the URL of its bucket."""
    model: str
    repository: Location
    database: str = ""
    """URL of the database whose locks writers of a bucket hold; empty: none."""
    kind: str = ""
    """Kind of the data, such as ``text``; empty: found by the files."""
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
    report: str
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
    config, photos, known = load_data(config)
    signing = SigningFiles(signing_key=config.signing_key).read(publishes=True)
    repository = open_repository(config.repository, signing, database=config.database, writes=True)
    repository.check_not_deleted(config.model)
    watch = Stopwatch(on_progress)
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
            choice, ranked = _choose(config, attempts, photos.kind)
            watch("backbone", 0, 0)
            if config.finetuning.unfreeze != "none":
                _check_tunable(repository, choice)
            info = prepare_backbone(repository, choice, attempts.exports)
            check_kind(info, photos.kind)
        attempt = attempts.attempt(info)
        findings = [
            *audit_inputs(photos, attempt.skipped, attempt.backbone.preprocess),
            *audit_exemplars(
                attempt.exemplars,
                attempt.learned.judged,
                seed=config.seed,
                threads=attempts.cores,
            ),
        ]
        if config.strict:
            require_clean(findings)
        notes = [*photos.notes, *([explain(ranked)] if ranked else [])]
        if config.drop_suspects:
            attempts, attempt = attempts.without_suspects(attempt)
            dropped = several(len(attempts.dropped), NOUNS[photos.kind])
            notes.append(f"Left out: {dropped} whose label is suspected")
        checkpoints = _checkpoints(config)
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
            notes=(*notes, *attempt.learned.notes),
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
        notes=[*notes, *attempt.learned.notes],
        held_out=held_out,
        left_out=photos.left_out,
        report=repository.storage.at(report_key(manifest)),
        seconds=watch.seconds(),
    )


def _checkpoints(config: FitConfig) -> Path:
    """Return the directory of the checkpoints of a fine-tuning, on this host for a bucket."""
    if isinstance(config.repository, Path):
        return config.repository / "checkpoints" / config.model
    name = sha256(config.repository.encode())[:16]
    return cache_directory().with_name("checkpoints") / name / config.model


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
    config: FitConfig, attempts: Attempts, kind: str
) -> tuple[BackboneChoice, Sequence[RankedBackbone]]:
    """Return the chosen backbone, and the ranking if backbones were compared."""
    check_backbone(config.backbone, kind, attempts.repository)
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
    return select(
        attempts, name=name, weights=config.weights, image_size=size, views=views, kind=kind
    )


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
