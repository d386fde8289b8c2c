"""Audio: the spec of a recording's windows, and the windows of samples that an encoder takes.

A recording becomes mono samples at the encoder's rate, cut into windows of one length. The graph
takes all windows and pools their embeddings; spectra, such as log-mel, are computed in the graph.
"""

from __future__ import annotations

import hashlib
import io
import wave
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from topwork.arrays import Float32Array
from topwork.errors import ImageError
from topwork.inputs import sound_file, sound_fingerprint
from topwork.inputs.sound_file import LEAST_RATE, MOST_RATE
from topwork.inputs.spec import InputSpec, SentContent
from topwork.limits import DEFAULT_LIMITS, InputLimits

MOST_SECONDS = 600
"""Raising it allows encoders of longer recordings, all of whose windows are in one run."""

MOST_PREPARED = 2**25
"""Raising it allows more samples in all windows of the longest recording; this many are 128 MB."""

LATEST_PROBES = "windows-1"
"""Name of the probe windows of new backbones. Other samples need another name."""

SILENT_PEAK = 1e-4
"""Raising it refuses louder recordings as silent: largest sample, where 1 is full scale."""

PREVIEW_RATE = 8_000
"""Raising it makes previews sound better and larger: bytes a second."""

_PREVIEW_SIDE = 64  # a preview of this many pixels lasts a second
_PROBES = ((1, 1), (1, 4), (2, 16), (3, 3))
"""Number of windows and equal samples in a row of each probe: noise of several spectra."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioSpec(InputSpec):
    """How a recording becomes windows. Raises ValueError if a field is invalid."""

    kind: Literal["audio"] = "audio"
    rate: int
    """Samples a second (Hz)."""
    window: int
    """Samples of a window. A shorter recording is padded with zeros at its end."""
    hop: int
    """Samples from the beginning of a window to that of the next. The last window ends with the
    recording, so it may overlap more."""
    max_seconds: int
    """Seconds of the longest recording; longer ones are refused."""

    def __post_init__(self) -> None:
        if not LEAST_RATE <= self.rate <= MOST_RATE:
            raise ValueError(f"rate {self.rate} must be {LEAST_RATE} to {MOST_RATE} Hz")
        if not 1 <= self.hop <= self.window:
            raise ValueError(f"hop {self.hop} must be between 1 and the window, {self.window}")
        if not 1 <= self.max_seconds <= MOST_SECONDS:
            raise ValueError(f"max_seconds {self.max_seconds} must be between 1 and {MOST_SECONDS}")
        prepared = self.windows(self.max_seconds * self.rate) * self.window
        if prepared > MOST_PREPARED:
            raise ValueError(
                f"the windows of {self.max_seconds} s have {prepared} samples; the limit is "
                f"{MOST_PREPARED}: lower max_seconds, or raise the hop"
            )

    def windows(self, samples: int) -> int:
        """Return the number of windows of a recording."""
        return 1 + -(-max(0, samples - self.window) // self.hop)


@dataclass(frozen=True, slots=True)
class SentAudio(SentContent):
    """A recording as a client sends it: a WAV, FLAC, OGG or MP3 file."""


def prepare(
    content: bytes, spec: AudioSpec, *, limits: InputLimits = DEFAULT_LIMITS
) -> Float32Array:
    """Return the windows (W, L) of a recording.

    Raises ImageError for a file that is too large, unreadable, silent or too long, and NotReady
    without the libraries.
    """
    if len(content) > limits.max_audio_bytes:
        raise ImageError(
            f"the audio has {len(content)} bytes; the limit is {limits.max_audio_bytes}",
            field="audio",
            reason="AUDIO_TOO_LARGE",
        )
    samples = sound_file.decode(content, rate=spec.rate, max_seconds=spec.max_seconds)
    peak = float(np.abs(samples).max())
    if peak < SILENT_PEAK:
        raise ImageError(
            f"the audio is silent: its largest sample is {peak:.1g} of full scale, below "
            f"{SILENT_PEAK:g}",
            field="audio",
            reason="AUDIO_SILENT",
        )
    last = len(samples) - spec.window
    if last <= 0:
        return np.pad(samples, (0, -last))[None]
    starts = np.minimum(np.arange(spec.windows(len(samples))) * spec.hop, last)
    return np.stack([samples[start : start + spec.window] for start in starts])


def digest(windows: Float32Array) -> str:
    """Return the sha256 of the windows' samples and their shape, in hexadecimal."""
    found = hashlib.sha256(b"audio")
    found.update(np.array(windows.shape, dtype="<i8").tobytes())
    found.update(windows.astype("<f4", copy=False).tobytes())
    return found.hexdigest()


def fingerprint(content: bytes) -> NDArray[np.uint8]:
    """Return the fingerprint of a recording, 256 bits (32,); see ``sound_fingerprint``.

    It does not depend on the encoder, so it decodes the recording at a rate of its own.
    """
    rate = sound_fingerprint.RATE
    return sound_fingerprint.fingerprint(
        sound_file.decode(content, rate=rate, max_seconds=MOST_SECONDS)
    )


def preview(content: bytes, side: int) -> bytes:
    """Return the loudest second of a recording, as a WAV file of 8 bits and 8 kHz mono (8 KB).

    It has the peak of full scale. ``side`` is that of a thumbnail in pixels, such as 64; larger
    ones mean more seconds: 256 pixels 4 s.
    """
    samples = sound_file.decode(content, rate=PREVIEW_RATE, max_seconds=MOST_SECONDS)
    length = PREVIEW_RATE * side // _PREVIEW_SIDE
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    starts = np.arange(0, max(1, len(samples) - length + 1), PREVIEW_RATE // 100)
    ends = np.minimum(starts + length, len(samples))
    start = int(starts[(energy[ends] - energy[starts]).argmax()])
    part = samples[start : start + length]
    levels = np.rint(part * (127 / max(float(np.abs(part).max()), 1e-9))) + 128
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(PREVIEW_RATE)
        file.writeframes(levels.astype(np.uint8).tobytes())
    return buffer.getvalue()


def probes(name: str, spec: AudioSpec) -> list[Float32Array]:
    """Return made-up windows. Raises KeyError for an unknown name, NotReady without libraries."""
    if name != LATEST_PROBES:
        raise KeyError(name)
    sound_file.check_libraries()  # so that a model of audio does not seem ready without them
    most = spec.windows(spec.max_seconds * spec.rate)
    return [
        _probe(f"{name}:{number}", min(count, most), spec.window, run)
        for number, (count, run) in enumerate(_PROBES)
    ]


def _probe(seed: str, count: int, length: int, run: int) -> Float32Array:
    size = -(-count * length // run)
    drawn = np.frombuffer(hashlib.shake_128(seed.encode()).digest(2 * size), dtype="<i2")
    levels = (drawn.astype(np.float32) / np.float32(2**17)).repeat(run)  # within 0.25
    return levels[: count * length].reshape(count, length)
