"""Bounded decoding of sound files: WAV, FLAC, OGG and MP3, to mono samples at one rate.

The library soundfile (libsndfile) decodes, soxr resamples. Both work through a file in blocks, so
that no header and no compression makes them use more memory or time than the limits allow.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from topwork.arrays import Float32Array
from topwork.errors import ImageError, NotReady

MOST_CHANNELS = 8
"""Raising it allows recordings of more microphones, whose mean is used."""

LEAST_RATE, MOST_RATE = 1_000, 384_000
"""Widening them allows files with other rates, in Hz."""

MOST_SAMPLES = 120_000_000
"""Raising it lets a file have more samples, in all channels: this many take about a second."""

LARGEST_SAMPLE = 16.0
"""Raising it allows louder files of floats, where 1 is full scale."""

QUALITY = "HQ"
"""Quality of soxr. Another gives other samples, so it would need other backbones."""

_BLOCK = 65_536  # samples of all channels
_FORMATS = {"WAV", "WAVEX", "FLAC", "OGG", "MP3"}
_SUBTYPES = {
    *("PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"),
    *("VORBIS", "OPUS", "MPEG_LAYER_III"),
}
_STREAMED = 0x7FFF_0000
"""Sizes in RIFF headers from here on are those of writers that did not know the size."""
_UNKNOWN = 2**62  # frames of a FLAC file whose writer did not know the length
_SLACK = 64  # bytes by which writers get the size in a RIFF header wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundHeader:
    """Facts about a file that are known without its samples."""

    rate: int
    """Hz"""
    channels: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Libraries:
    soundfile: Any
    soxr: Any


def check_libraries() -> None:
    """Raise NotReady unless the packages that decode are installed."""
    _libraries()


def decode(content: bytes, *, rate: int, max_seconds: int) -> Float32Array:
    """Return the samples (T,) of a file at ``rate`` Hz, the mean of its channels.

    Samples of WAV and FLAC at ``rate`` are the same on all machines. Resampled ones differ by up to
    2e-7 between processors' architectures: soxr's code for SIMD and without gave 92 % other values.
    So do OGG and MP3, and releases of the libraries. Raises ImageError for what is no such file,
    cut off, too long or not finite.
    """
    with _opened(content) as file:
        _check_header(file, max_seconds)
        blocks = _mono(file, max_seconds)
        if file.samplerate != rate:
            blocks = _resampled(blocks, _libraries().soxr, file.samplerate, rate)
        samples = np.concatenate([np.zeros(0, np.float32), *blocks])
    if not len(samples):
        raise _unreadable("has no samples")
    return np.ascontiguousarray(samples, dtype=np.float32)


def read_header(content: bytes) -> SoundHeader:
    """Return the facts about a file. Raises ImageError if it is none, NotReady."""
    with _opened(content) as file:
        rate = file.samplerate
        return SoundHeader(rate=rate, channels=file.channels, seconds=file.frames / rate)


@contextmanager
def _opened(content: bytes) -> Iterator[Any]:
    """Yield a file as soundfile opens it. All errors of the library are ImageError."""
    library = _libraries().soundfile
    _check_signature(content)
    try:
        with library.SoundFile(io.BytesIO(content)) as file:
            yield file
    except ImageError:
        raise
    except (library.LibsndfileError, RuntimeError, ValueError, TypeError) as error:
        raise _unreadable(f"cannot be decoded: {_text(error)}") from None


def _check_signature(content: bytes) -> None:
    """Raise ImageError unless the first bytes are those of a known format, and WAV is whole."""
    head = content[:12]
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        size = int.from_bytes(head[4:8], "little")
        if len(content) + _SLACK < size + 8 < _STREAMED:
            raise _unreadable(f"is cut off after {len(content)} of {size + 8} bytes")
    elif head[:4] not in {b"fLaC", b"OggS"} and not _is_mp3(head):
        raise _unreadable("is no WAV, FLAC, OGG or MP3 file")


def _is_mp3(head: bytes) -> bool:
    return head[:3] == b"ID3" or (len(head) > 3 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0)


def _check_header(file: Any, max_seconds: int) -> None:
    """Raise ImageError if a file says that decoding it would cost too much, or is not supported."""
    if file.format not in _FORMATS or file.subtype not in _SUBTYPES:
        raise _unreadable(
            f"is {file.format} with {file.subtype} samples; supported are WAV (PCM, float, A-law "
            "and mu-law), FLAC, OGG (Vorbis, Opus) and MP3"
        )
    if not 1 <= file.channels <= MOST_CHANNELS:
        raise _too_large(f"has {file.channels} channels; the limit is {MOST_CHANNELS}")
    if not LEAST_RATE <= file.samplerate <= MOST_RATE:
        raise _unreadable(
            f"has a rate of {file.samplerate} Hz; it must be {LEAST_RATE} to {MOST_RATE}"
        )
    if file.frames >= _UNKNOWN:  # libsndfile cannot read it to its end
        raise _unreadable("does not say its length: encode it to a file, not into a pipe")
    _check_length(file, file.frames, max_seconds)


def _check_length(file: Any, frames: int, max_seconds: int) -> None:
    if frames > max_seconds * file.samplerate:
        seconds = frames / file.samplerate
        raise _too_large(f"lasts {seconds:.1f} s; the limit is {max_seconds} s")
    if frames * file.channels > MOST_SAMPLES:
        raise _too_large(f"has {frames * file.channels} samples; the limit is {MOST_SAMPLES}")


def _mono(file: Any, max_seconds: int) -> Iterator[Float32Array]:
    """Yield the mean of the channels in blocks; counts frames, since a header may lie."""
    frames = _BLOCK // file.channels
    done = 0
    while len(block := file.read(frames, dtype="float32", always_2d=True)):
        _check_finite(block, done, file.samplerate)
        done += len(block)
        _check_length(file, done, max_seconds)
        # Sums of float64 channel by channel, so in one order on all machines.
        total = np.zeros(len(block))
        for channel in block.T:
            total += channel
        yield (total / file.channels).astype(np.float32)
    if done < file.frames:
        raise _unreadable(f"is cut off after {done} of {file.frames} samples per channel")


def _check_finite(block: Float32Array, done: int, rate: int) -> None:
    usable = (np.abs(block) <= LARGEST_SAMPLE).all(axis=1)  # also false for NaN
    if not usable.all():
        place = int(usable.argmin())
        value = float(block[place][np.abs(block[place]).argmax()])  # NaN is the largest
        raise _unreadable(
            f"has the sample {value:g} at {(done + place) / rate:.3f} s; samples must be finite, "
            f"and at most {LARGEST_SAMPLE:g}, where 1 is full scale"
        )


def _resampled(
    blocks: Iterator[Float32Array], soxr: Any, given: int, wanted: int
) -> Iterator[Float32Array]:
    stream = soxr.ResampleStream(given, wanted, 1, dtype="float32", quality=QUALITY)
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _libraries() -> _Libraries:
    try:
        import soundfile  # only models of audio need these
        import soxr
    except (ImportError, OSError):  # OSError: there is no libsndfile
        raise NotReady(
            "models of audio need the packages soundfile and soxr: install topwork[audio]",
            reason="EXTRA_MISSING",
        ) from None
    return _Libraries(soundfile=soundfile, soxr=soxr)


def _text(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).rstrip(".")


def _unreadable(fault: str) -> ImageError:
    return ImageError(f"the audio {fault}", field="audio", reason="AUDIO_UNREADABLE")


def _too_large(fault: str) -> ImageError:
    return ImageError(f"the audio {fault}", field="audio", reason="AUDIO_TOO_LARGE")
