"""Last phase of a fit: quantises the backbone to int8 and measures its loss and speed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from topwork.bundle.manifest import PrecisionGate
from topwork.inputs.audio import AudioSpec
from topwork.inputs.image_source import ImageSource
from topwork.inputs.kinds import kind_of
from topwork.inputs.spec import InputSpec
from topwork.inputs.text import TextSpec
from topwork.limits import DEFAULT_LIMITS
from topwork.runtime.agreement import expect
from topwork.runtime.backend import open_session
from topwork.storage.files import sha256
from topwork_trainer.backbones.precision_gate import gate, speed_ratio
from topwork_trainer.backbones.quantise import calibration_sample, quantise, quantise_texts
from topwork_trainer.fit.attempts import Attempt, Attempts

_TIMED = 16
"""Raising it makes the size of the input whose time is compared more typical."""


def quantise_backbone(attempts: Attempts, fp32: Attempt) -> tuple[Attempt, PrecisionGate]:
    """Quantise the backbone of ``fp32`` on its inputs; return the int8 attempt and the gate.

    The head is learnt on int8 embeddings, and both heads are judged on the same folds. Stores the
    new backbone. Raises QuantisationError.
    """
    info, names = fp32.backbone, set(fp32.exemplars.names)
    model = attempts.repository.backbone_model(info.digest)
    sample = calibration_sample([source for source in attempts.sources if source.name in names])
    attempts.on_progress("quantise", 0, 0)
    if isinstance(info.preprocess, TextSpec | AudioSpec):
        quantised = quantise_texts(model)
    else:
        quantised = quantise(model, _arrays(sample, info.image_spec))
    digest = sha256(quantised)
    slow, fast = (open_session(graph, output="embedding").run for graph in (model, quantised))
    stored = attempts.repository.put_backbone(
        quantised,
        replace(
            info,
            identity=f"{info.identity}:int8:{digest}",
            digest=digest,
            precision="int8",
            twin=info.digest,
            expected=expect(fast, info.preprocess),
        ),
    )
    pairs = zip(fp32.exemplars.names, fp32.exemplars.seen, strict=True)
    seen = {name for name, was_seen in pairs if was_seen}
    int8 = attempts.attempt(stored, seen=frozenset(seen), stage="embed int8")
    sizes = sorted(_arrays(sample[:_TIMED], info.preprocess), key=len)  # texts have many
    ratio = speed_ratio(slow, fast, sizes[len(sizes) // 2])
    return int8, gate(fp32.right(), int8.right(), speed_ratio=ratio)


def _arrays(sources: Sequence[ImageSource], spec: InputSpec) -> Iterator[NDArray[Any]]:
    kind = kind_of(spec)
    return (kind.prepare(source.read(), spec, limits=DEFAULT_LIMITS) for source in sources)
