"""Fuzz target of audio: files that become windows, a fingerprint and a preview, or are refused."""

from __future__ import annotations

import numpy as np
from support.sounds import encoded

from topwork.errors import ImageError
from topwork.inputs.audio import AudioSpec, digest, fingerprint, prepare, preview
from topwork.limits import InputLimits
from topwork.printable import printable

SPEC = AudioSpec(rate=8_000, window=800, hop=400, max_seconds=2)
LIMITS = InputLimits(max_audio_bytes=2**16)


def decode(content: bytes) -> None:
    """Decode any bytes."""
    try:
        windows = prepare(content, SPEC, limits=LIMITS)
    except ImageError as error:
        _check(error)
        return
    assert windows.dtype == np.float32
    assert windows.shape[1] == SPEC.window
    assert 1 <= len(windows) <= SPEC.windows(SPEC.max_seconds * SPEC.rate + SPEC.rate)
    assert np.isfinite(windows).all()
    assert len(digest(windows)) == 64
    assert len(fingerprint(content)) == 32
    assert preview(content, 64)[:4] == b"RIFF"


def _check(error: ImageError) -> None:
    """Check that an error can be shown in a terminal, and has a reason of its own."""
    message = str(error)
    assert message == printable(message), ascii(message)
    assert len(message) < 300, message
    assert error.reason.startswith("AUDIO_"), error.reason


def seeds() -> list[bytes]:
    """Return a short file of each format, with one channel and with two, at several rates."""
    time = np.arange(700)
    sound = 0.3 * np.sin(time / 4)
    stereo = np.stack([sound, np.sin(time / 9)], axis=1)
    infinite = np.where(time == 350, np.inf, sound)
    return [
        *(
            encoded(sound, subtype=subtype)
            for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "ULAW", "ALAW")
        ),
        *(encoded(stereo, kind=kind, rate=16_000) for kind in ("WAV", "FLAC", "OGG", "MP3")),
        encoded(sound, kind="OGG", subtype="OPUS"),
        encoded(sound, kind="MP3", rate=44_100),
        encoded(sound, kind="FLAC", subtype="PCM_24", rate=96_000),
        encoded(infinite, subtype="DOUBLE"),
        encoded(sound, subtype="IMA_ADPCM"),
        encoded(np.zeros(700)),
        b"RIFF\xff\xff\xff\x7fWAVEfmt ",
        b"ID3\x04\x00\x00\x00\x00\x00\x00",
    ]
