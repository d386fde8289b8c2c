"""Kinds of inputs: all that is particular to images, texts, audio, or a client's embeddings.

Learning, changes, registry and heads know embeddings alone. A kind is chosen by the spec in the
backbone's description, so a new kind is a spec and an entry in this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from topwork.errors import InvalidInput
from topwork.inputs import audio, embeddings, probe_images, text
from topwork.inputs.audio import AudioSpec, SentAudio
from topwork.inputs.duplicates import alike, fingerprint
from topwork.inputs.embeddings import EmbeddingSpec, SentEmbedding
from topwork.inputs.image import pixel_digest, preprocess
from topwork.inputs.preprocess import PreprocessSpec
from topwork.inputs.spec import InputSpec, SentContent
from topwork.inputs.text import SentText, TextSpec
from topwork.inputs.thumbnail import thumbnail
from topwork.limits import DEFAULT_LIMITS, InputLimits

S_contra = TypeVar("S_contra", bound=InputSpec, contravariant=True)
S = TypeVar("S", bound=InputSpec)
A = TypeVar("A", bound=NDArray[Any])
A_co = TypeVar("A_co", bound=NDArray[Any], covariant=True)


class Prepare(Protocol[S_contra, A_co]):
    """Function that turns content into the array that a backbone takes."""

    def __call__(self, content: bytes, spec: S_contra, *, limits: InputLimits) -> A_co:
        """Return the array. Raises ImageError, before much work if it would cost too much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputKind(Generic[S, A]):
    """A kind of input."""

    name: str
    """Tag in stored specs, and the name in messages."""
    same: str
    """What two inputs with the same digest have in common, for messages."""
    prepare: Prepare[S, A]
    digest: Callable[[A], str]
    """Returns a sha256 in hexadecimal, by which an exemplar is found."""
    fingerprint: Callable[[bytes, A], NDArray[np.uint8]]
    """Returns 32 bytes of the content and its array, which differ in few bits for near-duplicates;
    see ``duplicates``."""
    preview: Callable[[bytes, A, int], bytes]
    """Returns what people see of the content and its array: a JPEG file with that side in pixels,
    the beginning of a text, or a short WAV file; no bytes if there is nothing to see."""
    most_bytes: Callable[[InputLimits], int] = lambda limits: limits.max_image_bytes
    """Returns the length of the longest content."""
    alike: Callable[[bytes, bytes], bool] = lambda _preview, _other: True
    """Returns whether two previews whose fingerprints are near show the same."""
    latest_probes: str = ""
    """Name of the probe inputs of new backbones; empty: the kind has no backbones."""
    probes: Callable[[str, S], Sequence[A]] = lambda name, _spec: _no_probes(name)
    """Returns made-up arrays, the same on all machines, that show whether a backbone gives the
    embeddings of another machine. Raises KeyError for an unknown name."""


def _no_probes(name: str) -> Sequence[Any]:
    raise KeyError(name)


IMAGE = InputKind(
    name="image",
    same="same pixels",
    prepare=preprocess,
    digest=pixel_digest,
    fingerprint=lambda _content, pixels: fingerprint(pixels),
    preview=lambda _content, pixels, side: thumbnail(pixels, side),
    alike=alike,
    latest_probes=probe_images.LATEST,
    probes=lambda name, spec: list(probe_images.probe_images(name, spec.crop)),
)

EMBEDDING = InputKind(
    name="embedding",
    same="same numbers",
    prepare=embeddings.prepare,
    digest=embeddings.digest,
    fingerprint=lambda _content, row: embeddings.fingerprint(row),
    preview=lambda _content, _row, _side: b"",
)

TEXT = InputKind(
    name="text",
    same="same tokens",
    prepare=text.prepare,
    digest=text.digest,
    fingerprint=lambda _content, tokens: text.fingerprint(tokens),
    preview=lambda content, _tokens, _side: text.preview(content),
    most_bytes=lambda limits: limits.max_text_bytes,
    latest_probes=text.LATEST_PROBES,
    probes=text.probes,
)

AUDIO = InputKind(
    name="audio",
    same="same samples",
    prepare=audio.prepare,
    digest=audio.digest,
    fingerprint=lambda content, _windows: audio.fingerprint(content),
    preview=lambda content, _windows, side: audio.preview(content, side),
    most_bytes=lambda limits: limits.max_audio_bytes,
    latest_probes=audio.LATEST_PROBES,
    probes=audio.probes,
)

AnyInput: TypeAlias = bytes | SentEmbedding | SentContent
"""An input as a client sends it; bytes are an encoded image."""

_KINDS: Mapping[type[InputSpec], InputKind[Any, Any]] = {
    PreprocessSpec: IMAGE,
    EmbeddingSpec: EMBEDDING,
    TextSpec: TEXT,
    AudioSpec: AUDIO,
}

_GIVEN: Mapping[type[object], InputKind[Any, Any]] = {
    SentEmbedding: EMBEDDING,
    SentText: TEXT,
    SentAudio: AUDIO,
}

_SENT: Mapping[type[InputSpec], type[SentContent]] = {TextSpec: SentText, AudioSpec: SentAudio}


def kind_of(spec: S) -> InputKind[S, Any]:
    """Return the kind of a spec."""
    return _KINDS[type(spec)]


def array_of(content: AnyInput, spec: InputSpec, *, model: str) -> NDArray[Any]:
    """Return the array that the backbone of a model takes.

    Raises ImageError, and InvalidInput if the model takes inputs of another kind.
    """
    check_kind(kind_given(content), spec, model=model, field="images")
    if isinstance(content, SentEmbedding):
        assert isinstance(spec, EmbeddingSpec), "check_kind refuses other models"
        return embeddings.checked(content, spec)
    data = content.data if isinstance(content, SentContent) else content
    prepared: NDArray[Any] = kind_of(spec).prepare(data, spec, limits=DEFAULT_LIMITS)
    return prepared


def kind_given(content: object) -> InputKind[Any, Any]:
    """Return the kind of an input that a client has sent."""
    return _GIVEN.get(type(content), IMAGE)


def stored_input(content: bytes, spec: InputSpec) -> AnyInput:
    """Return the stored content of an input as a client sent it, for a model with this spec."""
    if isinstance(spec, EmbeddingSpec):
        return SentEmbedding(np.frombuffer(content, dtype="<f4"))
    made = _SENT.get(type(spec))
    return content if made is None else made(content)


def check_kind(given: InputKind[Any, Any], spec: InputSpec, *, model: str, field: str) -> None:
    """Raise InvalidInput unless inputs of the kind ``given`` fit a model with this spec."""
    taken = kind_of(spec)
    if given is not taken:
        raise InvalidInput(
            f"model {model!r} takes inputs of the kind {taken.name!r}, not {given.name!r}",
            field=field,
            reason="INPUT_KIND",
        )
