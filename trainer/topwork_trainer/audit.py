"""Audit of training photos or texts: findings about files, labels and duplicates, without a fit."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from topwork.bundle.exemplars import Exemplars
from topwork.bundle.findings import Finding, Severity
from topwork.bundle.opening import open_repository
from topwork.bundle.recipe import Recipe
from topwork.errors import InvalidInput
from topwork.inputs.folders import LeftOut
from topwork.inputs.kinds import kind_of
from topwork.learning.audit import audit_exemplars
from topwork.learning.learn import Judged, learn
from topwork.limits import DEFAULT_LIMITS
from topwork.runtime.cores import available_cores
from topwork.storage.location import Location
from topwork_trainer import backbones
from topwork_trainer.audit_findings import too_few_images, usable_images
from topwork_trainer.audit_inputs import audit_inputs
from topwork_trainer.backbones.exports import Exports
from topwork_trainer.backbones.prepare import check_kind, prepare_backbone
from topwork_trainer.cache import EmbeddingCache
from topwork_trainer.data import scan
from topwork_trainer.fit.attempts import Attempts, OnStageProgress
from topwork_trainer.fit.data import check_backbone
from topwork_trainer.kinds import noun_of

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""All severities, the worst first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """The settings of ``topwork-train audit``; each is an option of the same name."""

    data: Path
    repository: Location | None = None
    """Repository that stores the exported backbone; None: a temporary one."""
    kind: str = ""
    """Kind of the data, such as ``text``; empty: found by the files."""
    classes: Sequence[str] | None = None
    backbone: str = backbones.DEFAULT
    seed: int = 0
    cache: Path | None = None
    """Directory of cached embeddings and exported backbones; None: no cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """Findings about folders of photos, and the number of usable images."""

    counts: Mapping[str, int]
    """Usable images of each label, in label order; empty if the folder cannot be used at all."""
    findings: tuple[Finding, ...]
    """The worst first."""
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    """Decisions about folders, a sentence each."""


def audit(config: AuditConfig, on_progress: OnStageProgress) -> Audit:
    """Audit folders of photos. Folders from which no fit can learn are a finding, too.

    Raises the errors of ``prepare_backbone`` if the backbone cannot be loaded.
    """
    choice = backbones.parse(config.backbone)
    try:
        # A class with too few photos must not hide the findings about the others.
        lenient = replace(DEFAULT_LIMITS, min_images_per_label=0)
        photos = scan(config.data, classes=config.classes, kind=config.kind, limits=lenient)
    except (InvalidInput, OSError) as error:
        unusable = Finding(
            kind="unusable_folder", severity="error", message=str(error), images=(), labels=()
        )
        return Audit(counts={}, findings=(unusable,))
    with ExitStack() as stack:
        root = config.repository or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        repository = open_repository(root)
        on_progress("backbone", 0, 0)
        exports = Exports(config.cache) if config.cache else None
        check_backbone(config.backbone, photos.kind, repository)
        info = prepare_backbone(repository, choice, exports)
        check_kind(info, photos.kind)
        attempts = Attempts(
            repository=repository,
            sources=photos.train,
            recipe=Recipe(),
            seed=config.seed,
            cores=available_cores(),
            cache=stack.enter_context(EmbeddingCache(config.cache)) if config.cache else None,
            on_progress=on_progress,
        )
        exemplars, skipped = attempts.embed(attempts.open(info), stage="embed")
    on_progress("audit", 0, 0)
    empty = dict.fromkeys(set(photos.labels) - {photo.label for photo in photos.train}, 0)
    noun = noun_of(kind_of(info.preprocess).name)
    findings = [*too_few_images(empty, noun), *audit_inputs(photos, skipped, info.preprocess)]
    if exemplars is not None:
        judged = _judge(exemplars, config.seed, attempts.cores)
        findings += audit_exemplars(exemplars, judged, seed=config.seed)
    counts = dict(sorted({**empty, **usable_images(photos.train, skipped)}.items()))
    return Audit(
        counts=counts,
        findings=by_severity(findings),
        left_out=photos.left_out,
        notes=photos.notes,
    )


def by_severity(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the findings with the worst first; those of one severity stay in their order."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def require_clean(findings: Sequence[Finding]) -> None:
    """Raise InvalidInput (AUDIT_FAILED) with the worst findings unless all are notes."""
    failures = [finding for finding in by_severity(findings) if finding.severity != "note"]
    if not failures:
        return
    errors = sum(finding.severity == "error" for finding in failures)
    messages = "; ".join(finding.message for finding in failures[:3])
    more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
    raise InvalidInput(
        f"the audit found errors: {errors}, warnings: {len(failures) - errors}: {messages}{more}",
        field="data",
        reason="AUDIT_FAILED",
    )


def _judge(exemplars: Exemplars, seed: int, cores: int) -> Judged | None:
    if len(exemplars.labels) < 2:
        return None
    return learn(exemplars, seed=seed, threads=cores).judged
