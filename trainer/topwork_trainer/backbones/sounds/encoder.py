"""Import of a waveform encoder's ONNX graph as a backbone, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from topwork.arrays import Float32Array
from topwork.errors import InvalidInput
from topwork.inputs.audio import LATEST_PROBES, AudioSpec, probes
from topwork.runtime.backend import open_session
from topwork_trainer.backbones import onnx_file, onnx_graph
from topwork_trainer.backbones.imported import (
    ImportedBackbone,
    check_embeddings,
    imported,
    refusing,
)
from topwork_trainer.backbones.sounds.graph import WaveInput, find_input
from topwork_trainer.backbones.sounds.wrap import Completion, scaled, wrap
from topwork_trainer.backbones.stamp import stamped
from topwork_trainer.backbones.texts.graph import find_output

DEFAULT_WINDOW = 1.0
"""Raising it makes longer windows, in seconds, of encoders that take any."""

DEFAULT_SECONDS = 60
"""Raising it allows longer recordings, all of whose windows are in memory at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioSource:
    """A waveform encoder, and what is known about it; what is None is found, or the default."""

    file: Path
    """ONNX file."""
    audio_rate: int
    """Hz"""
    window: float | None = None
    """Seconds; None: the only length that the graph takes, or DEFAULT_WINDOW."""
    hop: float | None = None
    """Seconds; None: the window, so that windows do not overlap."""
    max_seconds: int | None = None
    audio_normalise: bool = False
    """Whether each window is scaled to mean 0 and variance 1."""
    output: str | None = None
    """Name of the tensor to use."""
    licence: str = "unknown"


def import_audio(name: str, source: AudioSource) -> ImportedBackbone:
    """Return the backbone ``name`` from an ONNX file.

    The graph is completed so that it takes all windows of a recording and gives their mean, and
    compared with the original. Raises InvalidInput if it cannot be used, NotReady without the
    libraries of audio.
    """
    model = onnx_file.read(source.file)
    with refusing(source.file):
        return _import(name, source, model)


def _import(name: str, source: AudioSource, model: onnx.ModelProto) -> ImportedBackbone:
    """See ``import_audio``. Raises ValueError, Corrupt, ExportError."""
    given = find_input(model)
    spec = _spec(source, given)
    tensor = find_output(model, source.output, pools=False)
    bare = onnx_graph.cut(model, tensor)
    recordings = probes(LATEST_PROBES, spec)
    if source.audio_normalise:
        outputs = _reference(bare, given, tensor, [*map(scaled, recordings)])
    else:
        outputs = _reference(bare, given, tensor, recordings)
    completion = Completion.of(outputs[0].shape, normalise=source.audio_normalise)
    expected = np.stack([completion.apply(output) for output in outputs])
    check_embeddings(expected, tensor, "recordings")
    wrapped = wrap(bare, given, completion, window=spec.window)
    graph = stamped(wrapped.SerializeToString(), spec)
    session = open_session(graph, output="embedding", quiet=True)
    actual = np.concatenate([session.run(windows[None]) for windows in recordings])
    return imported(
        name,
        source,
        original=bare,
        graph=graph,
        session=session,
        spec=spec,
        expected=expected,
        actual=actual,
        notes=_notes(given, tensor, completion, spec),
    )


def _spec(source: AudioSource, given: WaveInput) -> AudioSpec:
    """Return the spec of the windows. Raises InvalidInput and ValueError."""
    if source.window is None:
        window = given.length or round(DEFAULT_WINDOW * source.audio_rate)
    else:
        window = round(source.window * source.audio_rate)
    if given.length not in {None, window}:
        raise InvalidInput(
            f"its input {given.name!r} takes {given.length} samples, not {window}: leave out "
            "--window",
            field="window",
        )
    hop = window if source.hop is None else round(source.hop * source.audio_rate)
    try:
        return AudioSpec(
            rate=source.audio_rate,
            window=window,
            hop=hop,
            max_seconds=source.max_seconds or DEFAULT_SECONDS,
        )
    except ValueError as error:
        raise InvalidInput(str(error), field="audio_rate") from error


def _reference(
    bare: onnx.ModelProto, given: WaveInput, tensor: str, recordings: list[Float32Array]
) -> list[NDArray[np.float32]]:
    """Return the outputs (W, ...) of the original graph for each recording, a window per run."""
    session = open_session(bare.SerializeToString(), output=tensor, quiet=True)
    outputs = []
    for windows in recordings:
        rows = []
        for window in windows:
            try:
                (output,) = session.run_fed(given.feeds(window[None]), [tensor])
            except Exception as error:  # ONNX Runtime's errors share no class
                raise ValueError(
                    f"ONNX Runtime cannot run it with a window of {len(window)} samples: {error}"
                ) from error
            if output.ndim < 2 or len(output) != 1 or not output.size:
                raise ValueError(
                    f"its output has the shape {onnx_graph.shape_text(output.shape)} for one window"
                )
            rows.append(output)
        outputs.append(np.concatenate(rows))
    return outputs


def _notes(
    given: WaveInput, tensor: str, completion: Completion, spec: AudioSpec
) -> tuple[str, ...]:
    """Return what was found, a sentence each."""
    mask = f", {given.mask.name} all 1" if given.mask is not None else ""
    scale = ", each scaled to mean 0 and variance 1" if completion.normalise else ""
    mean = "mean over time and windows" if completion.pools_time else "mean over windows"
    return (
        f"input {given.name!r}: waveforms at {spec.rate} Hz{mask}",
        f"windows of {spec.window / spec.rate:g} s every {spec.hop / spec.rate:g} s{scale}; "
        f"recordings up to {spec.max_seconds} s",
        f"embedding: {completion.width} values, {mean} of {tensor!r}",
    )
