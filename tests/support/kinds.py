"""The kinds of inputs as tests use them: the same suites run for all entries of ``KINDS``.

A new kind needs an entry here, and a support module like ``texts``.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from support import sounds, spaces, texts, tiny
from support.pictures import pictures
from topwork import Audio, Embedding, Text
from topwork.bundle.exemplars import Exemplars
from topwork.bundle.manifest import BackboneInfo, Manifest
from topwork.bundle.store import Repository
from topwork.client.inputs import Content
from topwork.inputs import kinds
from topwork.inputs.kinds import InputKind
from topwork.inputs.spec import InputSpec
from topwork.limits import DEFAULT_LIMITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Inputs of a kind, and a model of them."""

    kind: InputKind[Any, Any]
    model: str
    labels: tuple[str, ...]
    """Four that the model has, and a fifth."""
    spec: InputSpec
    backbone: str
    """Name of the backbone or the space."""
    contents: Callable[[str, int, int], list[bytes]]
    """Returns inputs of a label as they are stored: (label, count, first)."""
    given: Callable[[bytes], Content]
    """Returns a stored input as the client sends it."""
    exemplars: Callable[[Mapping[str, Sequence[bytes]]], Exemplars]
    publish: Callable[[Repository, str, Exemplars], Manifest]
    bad: tuple[bytes, str, str]
    """Stored input that does not fit, the reason, and a part of the message."""
    twins: tuple[bytes, bytes]
    """Stored inputs with other bytes and the same digest."""
    tensor: tuple[str, str]
    """Name and datatype in the Open Inference Protocol."""
    suffix: str
    """Suffix of a file with inputs, as the commands read it."""
    write: Callable[[Path, Sequence[bytes]], list[Path]]
    """Writes inputs into a folder and returns the files of the inputs."""

    @property
    def name(self) -> str:
        """Name of the kind."""
        return self.kind.name

    def inputs(self, label: str, count: int, *, first: int = 0) -> list[Content]:
        """Return inputs of a label, numbered ``first`` and later, as the client sends them."""
        return [self.given(content) for content in self.contents(label, count, first)]

    def digest(self, content: bytes) -> str:
        """Return the digest by which a stored input is found."""
        return str(self.kind.digest(self.kind.prepare(content, self.spec, limits=DEFAULT_LIMITS)))

    def four(self, count: int = 12) -> dict[str, list[bytes]]:
        """Return the first inputs of four labels."""
        return {label: self.contents(label, count, 0) for label in self.labels[:4]}

    def message(self, content: bytes) -> dict[str, Any]:
        """Return a stored input as an ``Input`` in JSON."""
        given = self.given(content)
        if isinstance(given, Text):
            return {"text": given.text}
        if isinstance(given, Embedding):
            return {"embedding": {"values": np.frombuffer(given.values, "<f4").tolist()}}
        if isinstance(given, Audio):
            return {"audio": base64.b64encode(given.data).decode()}
        return {"image": base64.b64encode(given).decode()}


def _files(suffix: str) -> Callable[[Path, Sequence[bytes]], list[Path]]:
    """Return a function that writes a file for each input."""

    def write(folder: Path, contents: Sequence[bytes]) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{number:03}{suffix}" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        return paths

    return write


def _rows(folder: Path, contents: Sequence[bytes]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.npy" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        np.save(path, np.frombuffer(content, "<f4"))
    return paths


_NAN = np.full(spaces.SPEC.width, np.nan, np.float32).tobytes()

IMAGE = Sample(
    kind=kinds.IMAGE,
    model="colours",
    labels=("amber", "blue", "crimson", "green", "violet"),
    spec=tiny.SPEC,
    backbone="tiny",
    contents=lambda label, count, first: pictures(label, count, start=first),
    given=lambda content: content,
    exemplars=tiny.embed_pictures,
    publish=tiny.publish,
    bad=(b"no image", "IMAGE_UNREADABLE", "has an unknown format"),
    twins=(pictures("blue", 1)[0], pictures("blue", 1)[0] + b"trailing"),
    tensor=("images", "BYTES"),
    suffix=".png",
    write=_files(".png"),
)

EMBEDDING = Sample(
    kind=kinds.EMBEDDING,
    model="points",
    labels=("a", "b", "c", "d", "e"),
    spec=spaces.SPEC,
    backbone=spaces.SPEC.space,
    contents=lambda label, count, first: [
        row.tobytes() for row in spaces.rows(label, count, first=first)
    ],
    given=Embedding,
    exemplars=lambda given: spaces.exemplars(
        {label: [np.frombuffer(row, "<f4") for row in own] for label, own in given.items()}
    ),
    publish=spaces.publish,
    bad=(_NAN, "EMBEDDING_INVALID", "the value nan at 0"),
    twins=(bytes(4 * spaces.SPEC.width), b"\0\0\0\x80" + bytes(4 * spaces.SPEC.width - 4)),
    tensor=("embeddings", "FP32"),
    suffix=".npy",
    write=_rows,
)

TEXT = Sample(
    kind=kinds.TEXT,
    model="topics",
    labels=("cooking", "sailing", "gardens", "music", "chess"),
    spec=texts.spec(),
    backbone="words",
    contents=lambda label, count, first: [
        text.encode() for text in texts.texts(label, count, first=first)
    ],
    given=lambda content: Text(content.decode()),
    exemplars=lambda given: texts.exemplars(
        {label: [text.decode() for text in own] for label, own in given.items()}
    ),
    publish=texts.publish,
    bad=(b"xyzzy plugh", "TEXT_INVALID", "only unknown tokens: 'xyzzy plugh'"),
    twins=(b"Salt the  pan", b"salt THE pan"),
    tensor=("texts", "BYTES"),
    suffix=".txt",
    write=_files(".txt"),
)

_LEVELS = np.round(sounds.samples("bell", 0) * 2**15) / 2**15

AUDIO = Sample(
    kind=kinds.AUDIO,
    model="sounds",
    labels=sounds.LABELS,
    spec=sounds.SPEC,
    backbone="log-mel",
    contents=lambda label, count, first: sounds.recordings(label, count, first=first),
    given=Audio,
    exemplars=sounds.exemplars,
    publish=sounds.publish,
    bad=(b"no audio", "AUDIO_UNREADABLE", "is no WAV, FLAC, OGG or MP3 file"),
    twins=(sounds.encoded(_LEVELS), sounds.encoded(_LEVELS, kind="FLAC")),
    tensor=("audio", "BYTES"),
    suffix=".wav",
    write=_files(".wav"),
)

KINDS = (IMAGE, EMBEDDING, TEXT, AUDIO)


def name_of(value: object) -> str | None:
    """Return the id of a test's parameter."""
    return value.name if isinstance(value, Sample) else None


def other(sample: Sample) -> Sample:
    """Return a sample of another kind."""
    return KINDS[(KINDS.index(sample) + 1) % len(KINDS)]


@tiny.copied
def repository(root: Path) -> Repository:
    """Return a new repository with a model of each kind, of four labels."""
    made = Repository(root)
    for sample in KINDS:
        sample.publish(made, sample.model, sample.exemplars(sample.four()))
    return made


def backbone(made: Repository, sample: Sample) -> BackboneInfo:
    """Return the backbone of a sample's model."""
    return made.backbone(made.manifest(sample.model, 1))
