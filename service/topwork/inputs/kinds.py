"""Kinds of inputs: all that is particular to images, or to embeddings of the client.

Learning, changes, registry and heads know embeddings alone. A kind is chosen by the spec in the
backbone's description, so a new kind is a spec and an entry in this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from topwork.errors import InvalidInput
from topwork.inputs import embeddings
from topwork.inputs.duplicates import fingerprint
from topwork.inputs.embeddings import EmbeddingSpec, SentEmbedding
from topwork.inputs.image import pixel_digest, preprocess
from topwork.inputs.preprocess import PreprocessSpec
from topwork.inputs.spec import InputSpec
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
    fingerprint: Callable[[A], NDArray[np.uint8]]
    """Returns 32 bytes, which differ in few bits for near-duplicates; see ``duplicates``."""
    preview: Callable[[A, int], bytes]
    """Returns a JPEG file with that side in pixels; no bytes if the kind has no picture."""


IMAGE = InputKind(
    name="image",
    same="same pixels",
    prepare=preprocess,
    digest=pixel_digest,
    fingerprint=fingerprint,
    preview=thumbnail,
)

EMBEDDING = InputKind(
    name="embedding",
    same="same numbers",
    prepare=embeddings.prepare,
    digest=embeddings.digest,
    fingerprint=embeddings.fingerprint,
    preview=embeddings.preview,
)

_KINDS: Mapping[type[InputSpec], InputKind[Any, Any]] = {
    PreprocessSpec: IMAGE,
    EmbeddingSpec: EMBEDDING,
}


def kind_of(spec: S) -> InputKind[S, Any]:
    """Return the kind of a spec."""
    return _KINDS[type(spec)]


def array_of(content: bytes | SentEmbedding, spec: InputSpec, *, model: str) -> NDArray[Any]:
    """Return the array that the backbone of a model takes.

    Raises ImageError, and InvalidInput if the model takes inputs of another kind.
    """
    check_kind(kind_given(content), spec, model=model, field="images")
    if isinstance(content, SentEmbedding):
        assert isinstance(spec, EmbeddingSpec), "check_kind refuses other models"
        return embeddings.checked(content, spec)
    prepared: NDArray[Any] = kind_of(spec).prepare(content, spec, limits=DEFAULT_LIMITS)
    return prepared


def kind_given(content: object) -> InputKind[Any, Any]:
    """Return the kind of an input that a client has sent."""
    return EMBEDDING if isinstance(content, SentEmbedding) else IMAGE


def check_kind(given: InputKind[Any, Any], spec: InputSpec, *, model: str, field: str) -> None:
    """Raise InvalidInput unless inputs of the kind ``given`` fit a model with this spec."""
    taken = kind_of(spec)
    if given is not taken:
        raise InvalidInput(
            f"model {model!r} takes inputs of the kind {taken.name!r}, not {given.name!r}",
            field=field,
            reason="INPUT_KIND",
        )
