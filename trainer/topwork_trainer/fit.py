"""The fit: from folders of photos to a published revision."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from topwork.bundle.files import sha256
from topwork.bundle.limits import DEFAULT_LIMITS
from topwork.bundle.manifest import BackboneInfo, Manifest
from topwork.bundle.metrics import Metrics
from topwork.bundle.names import check_model
from topwork.bundle.store import Repository
from topwork.engine.backend import open_session, software_versions
from topwork.engine.cores import available_cores
from topwork.engine.embed import Skipped, embed
from topwork.engine.solve import solve
from topwork.errors import InvalidInput
from topwork_trainer import backbones
from topwork_trainer.data import check_counts, scan

OnProgress = Callable[[str, int, int], None]
"""Called with a stage (backbone, embed, solve, publish), units done and in all (0: one step)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    """The settings of ``topwork-train fit``; each is an option of the same name."""

    data: Path
    model: str
    repository: Path
    classes: Sequence[str] | None = None
    backbone: str = backbones.DEFAULT
    weights: Path | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What a fit gave."""

    manifest: Manifest
    backbone: BackboneInfo
    metrics: Metrics
    skipped: list[Skipped]
    seconds: dict[str, float]
    """Of each stage, and ``total``."""


def fit(config: FitConfig, on_progress: OnProgress) -> Fitted:
    """Train a head on a frozen backbone and let it serve as the next revision of the model.

    The backbone is exported once a repository and used again after that. Unusable images are left
    out and returned. Raises InvalidInput for what cannot be learnt from; nothing is published then.
    """
    check_model(config.model)
    sources = scan(config.data, classes=config.classes)
    repository = Repository(config.repository)
    watch = _Stopwatch()

    on_progress("backbone", 0, 0)
    info = prepare_backbone(repository, config.backbone, config.weights)
    watch.lap("backbone")

    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        on_progress("embed", done, len(sources))

    cores = available_cores()
    session = open_session(repository.backbone_model(info.digest), output="embedding")
    exemplars, skipped = embed(sources, session, info.preprocess, cores=cores, on_image=count)
    labels = sorted({source.label for source in sources})
    counts = Counter(dict.fromkeys(labels, 0))
    if exemplars is not None:
        counts.update(dict(zip(exemplars.labels, exemplars.counts().tolist(), strict=True)))
    check_counts(counts, labels, kind="usable images", limits=DEFAULT_LIMITS)
    assert exemplars is not None, "check_counts refused an empty set"
    watch.lap("embed")

    on_progress("solve", 0, 0)
    manifest = solve(
        repository,
        model=config.model,
        backbone=info.digest,
        shards=[repository.put_exemplars(exemplars)],
        seed=config.seed,
    )
    watch.lap("solve")

    on_progress("publish", 0, 0)
    repository.set_serving(config.model, manifest.revision)
    watch.lap("publish")
    return Fitted(
        manifest=manifest,
        backbone=info,
        metrics=repository.metrics(manifest),
        skipped=skipped,
        seconds=watch.seconds(),
    )


def prepare_backbone(repository: Repository, name: str, weights: Path | None) -> BackboneInfo:
    """Return the stored export of a backbone, exporting it first if the repository has none.

    Only an export needs torch. Raises InvalidInput for an unknown name or unusable weights,
    NotFound for weights that cannot be had, ExportError for a failed parity check.
    """
    identity = backbones.identity(name, weights)
    for info in repository.backbones():
        if info.identity == identity:
            return info
    try:
        import torch

        from topwork_trainer import export
    except ImportError as error:
        raise InvalidInput(
            f"exporting backbone {name!r} needs torch: pip install 'topwork[train]' ({error})",
            field="backbone",
        ) from error
    torch.set_num_threads(available_cores())  # torch, too, counts the host's
    backbone = backbones.load(name, weights=weights)
    exported = export.export(
        backbone, open_session=lambda model: open_session(model, output="embedding").run
    )
    info = BackboneInfo(
        name=name,
        identity=identity,
        digest=sha256(exported.onnx),
        preprocess=backbone.spec,
        width=backbone.width,
        precision="fp32",
        licence=backbone.licence,
        source=backbone.source,
        weights_digest=backbone.weights_sha256,
        parity_error=exported.parity.max_abs_difference,
        versions=software_versions(),
    )
    stored = repository.put_backbone(exported.onnx, info)
    if stored.preprocess != info.preprocess:
        raise export.ExportError(
            f"the repository has this graph with other preprocessing, {stored.preprocess}; "
            "use another repository"
        )
    return stored


class _Stopwatch:
    """Seconds of each stage, in the order of the laps."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self._laps[stage] = now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        return {**self._laps, "total": self._last - self._start}
