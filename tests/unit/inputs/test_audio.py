"""Audio: windows, digests, fingerprints, previews, and what is refused."""

from __future__ import annotations

import builtins
import io
import struct
import wave
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from support import sounds
from support.sounds import RATE, encoded

from topwork.errors import ImageError, NotReady
from topwork.inputs import audio, sound_file
from topwork.inputs.audio import AudioSpec, SentAudio, prepare, preview, probes
from topwork.inputs.duplicates import NEAR_DUPLICATE_BITS
from topwork.inputs.kinds import AUDIO, kind_of
from topwork.inputs.specs import spec_of
from topwork.limits import InputLimits

SPEC = AudioSpec(rate=RATE, window=400, hop=200, max_seconds=2)
TONE = (0.3 * np.sin(np.arange(4_000) / 5)).astype(np.float32)
FORMATS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("WAV", "ULAW"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]


def refusal(content: bytes, spec: AudioSpec = SPEC, **limits: int) -> ImageError:
    """Return the error of a content that must be refused."""
    with pytest.raises(ImageError) as caught:
        prepare(content, spec, limits=InputLimits(**limits))
    assert caught.value.field == "audio"
    return caught.value


def bits(one: bytes, other: bytes) -> int:
    """Return the number of bits in which the fingerprints of two recordings differ."""
    return int(np.unpackbits(audio.fingerprint(one) ^ audio.fingerprint(other)).sum())


@pytest.mark.parametrize(
    ("count", "starts"),
    [
        (1, [0]),
        (399, [0]),
        (400, [0]),
        (401, [0, 1]),
        (600, [0, 200]),
        (601, [0, 200, 201]),
        (1000, [0, 200, 400, 600]),
    ],
)
def test_windows_begin_every_hop_and_end_with_the_recording(count: int, starts: list[int]) -> None:
    """A shorter recording than a window is padded with zeros at its end."""
    windows = prepare(encoded(TONE[100 : 100 + count], subtype="FLOAT"), SPEC)
    assert windows.dtype == np.float32
    assert windows.flags.c_contiguous
    padded = np.pad(TONE[100 : 100 + count], (0, max(0, 400 - count)))
    assert windows.tolist() == [padded[start : start + 400].tolist() for start in starts]
    assert len(windows) == SPEC.windows(count)


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
def test_all_formats_are_read(kind: str, subtype: str) -> None:
    """The sound is the same but for what compression loses."""
    windows = prepare(encoded(TONE, kind=kind, subtype=subtype), SPEC)
    assert abs(len(windows) - SPEC.windows(len(TONE))) <= 1
    assert float(np.sqrt(np.mean(windows**2))) == pytest.approx(0.212, abs=0.02)


def test_channels_are_mixed_and_the_rate_is_converted() -> None:
    """The mean of the channels; a tone keeps its pitch."""
    stereo = np.stack([TONE, np.zeros_like(TONE)], axis=1)
    mixed = prepare(encoded(stereo, subtype="FLOAT"), SPEC)
    assert np.array_equal(mixed, prepare(encoded(TONE / 2, subtype="FLOAT"), SPEC))
    time = np.arange(44_100) / 44_100
    high = encoded(0.3 * np.sin(2 * np.pi * 1_000 * time), rate=44_100)
    one = AudioSpec(rate=RATE, window=RATE, hop=RATE, max_seconds=2)
    (window,) = prepare(high, one)
    assert np.abs(np.fft.rfft(window)).argmax() == 1_000
    assert np.abs(window[100:-100]).max() == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(
    ("content", "reason", "fault"),
    [
        (b"", "AUDIO_UNREADABLE", "is no WAV, FLAC, OGG or MP3 file"),
        (b"some text, not audio", "AUDIO_UNREADABLE", "is no WAV, FLAC, OGG or MP3 file"),
        (encoded(TONE, kind="AIFF"), "AUDIO_UNREADABLE", "is no WAV, FLAC, OGG or MP3 file"),
        (encoded(TONE[:0]), "AUDIO_UNREADABLE", "has no samples"),
        (encoded(TONE)[:-500], "AUDIO_UNREADABLE", "is cut off after 7544 of 8044 bytes"),
        (encoded(TONE, kind="FLAC")[:-50], "AUDIO_UNREADABLE", "cannot be decoded"),
        (encoded(TONE, kind="OGG")[:900], "AUDIO_UNREADABLE", "cannot be decoded"),
        (encoded(TONE, kind="MP3")[:1500], "AUDIO_UNREADABLE", "is cut off after"),
        (encoded(TONE, subtype="IMA_ADPCM"), "AUDIO_UNREADABLE", "is WAV with IMA_ADPCM samples"),
        (encoded(TONE, rate=500), "AUDIO_UNREADABLE", "a rate of 500 Hz; it must be 1000 to"),
        (encoded(TONE * 0), "AUDIO_SILENT", "is silent: its largest sample is 0 of full scale"),
        (encoded(TONE * 1e-4, subtype="FLOAT"), "AUDIO_SILENT", "below 0.0001"),
        (encoded(np.tile(TONE[:99, None], 64)), "AUDIO_TOO_LARGE", "has 64 channels; the limit"),
        (
            encoded(np.zeros(8 * 3600 * 1000, np.int16), rate=1000, kind="FLAC"),
            "AUDIO_TOO_LARGE",
            "lasts 28800.0 s; the limit is 2 s",
        ),
    ],
)
def test_unusable_files_are_refused(content: bytes, reason: str, fault: str) -> None:
    """The error has the value that is wrong."""
    error = refusal(content)
    assert error.reason == reason
    assert fault in str(error)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 20.0])
def test_samples_that_are_not_finite_or_too_large_are_refused(value: float) -> None:
    """A WAV file of floats may have any value; the error has it and its time."""
    sound = TONE.astype(np.float64)
    sound[2_000] = value
    error = refusal(encoded(sound, subtype="DOUBLE"))
    assert error.reason == "AUDIO_UNREADABLE"
    assert f"has the sample {value:g} at 0.250 s" in str(error)


def test_a_file_above_the_limit_is_refused_before_it_is_decoded() -> None:
    """The error has the size and the limit."""
    error = refusal(b"RIFF" + bytes(40), max_audio_bytes=43)
    assert error.reason == "AUDIO_TOO_LARGE"
    assert str(error) == "the audio has 44 bytes; the limit is 43"


def with_frames(flac: bytes, frames: int) -> bytes:
    """Return a FLAC file whose header says another number of frames."""
    field = int.from_bytes(flac[18:26], "big") >> 36 << 36 | frames
    return flac[:18] + field.to_bytes(8, "big") + flac[26:]


@pytest.mark.parametrize("frames", [1, 0, 2**35])
def test_a_header_that_lies_gains_nothing(frames: int) -> None:
    """100 s of a small FLAC file are never decoded to their end."""
    sound = np.full(100 * RATE, 0.1, np.float32)
    lies = with_frames(encoded(sound, kind="FLAC"), frames)
    if frames == 1:  # libsndfile believes it
        assert prepare(lies, SPEC).shape == (1, 400)
        return
    assert refusal(lies).reason in {"AUDIO_TOO_LARGE", "AUDIO_UNREADABLE"}


def test_frames_are_counted_while_they_are_decoded() -> None:
    """A decoder that delivers more than the header says is stopped."""
    file = FakeFile([np.zeros((RATE, 1), np.float32)] * 9, frames=10)
    with pytest.raises(ImageError, match="the limit is 2 s"):
        list(sound_file._mono(file, 2))  # no file lies like this one
    assert len(file.blocks) == 6


class FakeFile:
    """A file of soundfile that delivers what it is given."""

    samplerate = RATE
    channels = 1

    def __init__(self, blocks: Sequence[NDArray[np.float32]], *, frames: int) -> None:
        self.blocks = [*blocks]
        self.frames = frames

    def read(self, _frames: int, **_options: object) -> NDArray[np.float32]:
        """Return the next block."""
        return self.blocks.pop(0)


def test_a_streamed_wav_file_is_read_to_its_end() -> None:
    """Writers into a pipe do not know the size, so they write the largest one."""
    content = bytearray(encoded(TONE))
    content[4:8] = struct.pack("<I", 0x7FFFF024)
    content[40:44] = struct.pack("<I", 0x7FFFF000)
    assert len(prepare(bytes(content), SPEC)) == SPEC.windows(len(TONE))


def test_the_digest_is_of_samples_not_of_files() -> None:
    """WAV and FLAC of the same samples are the same; one other bit is another recording."""
    levels = np.round(TONE * 2**15).astype(int).astype(np.int16)
    found = [
        audio.digest(prepare(encoded(sound, kind=kind), SPEC))
        for sound, kind in ((levels, "WAV"), (levels, "FLAC"), (levels + np.int16(1), "WAV"))
    ]
    assert found[0] == found[1] != found[2]
    assert len(found[0]) == 64


@pytest.mark.parametrize(
    "copy",
    [
        lambda sound: encoded(0.1 * sound),
        lambda sound: encoded(sound, kind="FLAC"),
        lambda sound: encoded(sound, kind="MP3"),
        lambda sound: encoded(sound, kind="OGG"),
        lambda sound: encoded(np.pad(sound, (900, 1_500))),
        lambda sound: encoded(np.stack([sound, sound], axis=1)),
    ],
)
def test_copies_are_near_duplicates(copy: Callable[[NDArray[np.float32]], bytes]) -> None:
    """Volume, format, silence at the ends and channels."""
    for number in range(5):
        sound = speech(number)
        assert bits(encoded(sound), copy(sound)) <= NEAR_DUPLICATE_BITS


def test_other_recordings_are_far() -> None:
    """More than twice as far as near-duplicates may be."""
    made = [encoded(speech(number)) for number in range(8)]
    found = [bits(one, other) for place, one in enumerate(made) for other in made[:place]]
    assert min(found) > 2 * NEAR_DUPLICATE_BITS


def speech(number: int) -> NDArray[np.float32]:
    """Return a made-up sound (T,) with syllables: noise and tones that change every 0.1 s."""
    random = np.random.default_rng(number)
    syllables = []
    for _ in range(8):
        time = np.arange(RATE // 10) / RATE
        tones = random.uniform(200, 3_500, 4)[:, None]
        sound = (random.uniform(0.1, 1, (4, 1)) * np.sin(2 * np.pi * tones * time)).sum(axis=0)
        syllables.append(random.uniform(0.2, 1) * (sound + random.normal(0, 0.2, len(time))))
    return (0.1 * np.concatenate(syllables)).astype(np.float32)


def test_recordings_without_sound_in_the_bands_are_not_alike() -> None:
    """Nothing tells them apart but their samples."""
    found = {audio.fingerprint(encoded(TONE[:count] * 0)).tobytes() for count in (700, 800)}
    assert len(found) == 2


def test_a_preview_is_the_loudest_second() -> None:
    """A WAV file of 8 bits, 8 kHz, mono; larger sides last longer."""
    quiet = np.concatenate([TONE * 0.1, TONE * 0.1, TONE, TONE, TONE * 0.1])
    content = encoded(np.stack([quiet, quiet], axis=1), rate=RATE)
    with wave.open(io.BytesIO(preview(content, 64))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8_000, 1, 1)
        assert file.getnframes() == 8_000
        levels = np.frombuffer(file.readframes(8_000), np.uint8).astype(int) - 128
    assert np.abs(levels).max() == 127
    assert np.abs(levels[:3_900]).max() > 100
    assert len(preview(content, 256)) == 44 + len(quiet)
    assert preview(content, 64) == preview(content, 64)


def test_probes_are_windows_of_several_spectra() -> None:
    """They fit the encoder, are the same on all machines, and never silent."""
    made = probes(audio.LATEST_PROBES, SPEC)
    assert [windows.shape for windows in made] == [(1, 400), (1, 400), (2, 400), (3, 400)]
    assert all(0.01 < np.abs(windows).max() <= 0.25 for windows in made)
    assert made[0][0, :3].tolist() == GOLDEN
    single = AudioSpec(rate=RATE, window=2 * RATE, hop=RATE, max_seconds=2)
    assert {len(windows) for windows in probes(audio.LATEST_PROBES, single)} == {1}
    with pytest.raises(KeyError):
        probes("windows-0", SPEC)


GOLDEN = [-0.05524444580078125, -0.20721435546875, 0.08521270751953125]


def test_without_the_libraries_the_model_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the extra; the server says it when it loads the model."""
    imported = builtins.__import__

    def no_soundfile(name: str, *rest: object) -> object:
        if name == "soundfile":
            raise ImportError(name)
        return imported(name, *rest)  # type: ignore[arg-type] # as they came

    monkeypatch.setattr(builtins, "__import__", no_soundfile)
    for call in (
        lambda: prepare(encoded(TONE), SPEC),
        lambda: probes(audio.LATEST_PROBES, SPEC),
    ):
        with pytest.raises(NotReady, match=r"topwork\[audio\]") as caught:
            call()
        assert caught.value.reason == "EXTRA_MISSING"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"rate": 999}, "rate 999"),
        ({"hop": 0}, "hop 0"),
        ({"hop": 401}, "hop 401 must be between 1 and the window, 400"),
        ({"max_seconds": 601}, "max_seconds 601"),
        ({"rate": 48_000, "hop": 1, "max_seconds": 600}, "lower max_seconds, or raise the hop"),
    ],
)
def test_a_spec_has_limits(change: Mapping[str, int], fault: str) -> None:
    """The error has the value."""
    fields = {"rate": RATE, "window": 400, "hop": 200, "max_seconds": 2, **change}
    with pytest.raises(ValueError, match=fault):
        AudioSpec(**fields)  # type: ignore[arg-type] # mypy takes them for the tag, too


def test_the_kind_is_found_by_its_spec_and_by_its_tag() -> None:
    """A stored spec is read as the kind that it names."""
    assert kind_of(SPEC) is AUDIO
    stored = {"kind": "audio", "rate": RATE, "window": 400, "hop": 200, "max_seconds": 2}
    assert spec_of(stored) == SPEC
    assert SentAudio(b"abc").size == 3
    assert sounds.SPEC.windows(sounds.RATE) == 3
