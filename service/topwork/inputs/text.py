"""Texts: the spec of a tokenizer, and the tokens that an encoder takes.

A text becomes the ids of its tokens, by the ``tokenizer.json`` of the encoder. DNA, RNA and
proteins are texts, too, with a vocabulary of characters.
"""

from __future__ import annotations

import functools
import hashlib
import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from topwork.errors import ImageError, NotReady
from topwork.inputs.spec import InputSpec, SentContent
from topwork.limits import DEFAULT_LIMITS, InputLimits

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Tokens: TypeAlias = NDArray[np.int64]
"""Ids of tokens, (T,)."""

MOST_TOKENS = 8_192
"""Raising it allows encoders of longer texts; the time of many grows with the square."""

LARGEST_TOKENIZER = 64 * 2**20
"""Raising it allows larger files ``tokenizer.json``, in bytes."""

PREVIEW_CHARACTERS = 500
"""Raising it shows more of each text in reports and lists."""

LATEST_PROBES = "tokens-1"
"""Name of the probe texts of new backbones. Other tokens need another name."""

_RUN = 8
_WEIGHTS = (2, 2, 1)
"""Of a token, a pair and a run: raising the last makes fewer texts near-duplicates."""

_PROBE_LENGTHS = (4, 16, 48, 128)
_MOST_LOADED = 8
"""Raising it keeps more tokenizers in memory, of some 100 MB each with 250,000 words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSpec(InputSpec):
    """How a text becomes tokens. Raises ValueError if a field is invalid."""

    kind: Literal["text"] = "text"
    tokenizer: bytes
    """``tokenizer.json`` of the library tokenizers, compressed by zlib."""
    max_tokens: int
    """Tokens of the longest text, with those that begin and end it; the rest is cut off."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_tokens <= MOST_TOKENS:
            raise ValueError(f"max_tokens {self.max_tokens} must be between 1 and {MOST_TOKENS}")


@dataclass(frozen=True, slots=True)
class SentText(SentContent):
    """A text as a client sends it, in UTF-8."""


def spec_of(tokenizer: bytes, *, max_tokens: int) -> TextSpec:
    """Return the spec of a ``tokenizer.json``. Raises ValueError if it cannot be used."""
    if len(tokenizer) > LARGEST_TOKENIZER:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} bytes; the limit is {LARGEST_TOKENIZER}"
        )
    spec = TextSpec(tokenizer=zlib.compress(tokenizer, 9), max_tokens=max_tokens)
    _loaded(spec.tokenizer, max_tokens)
    return spec


def vocabulary(spec: TextSpec) -> int:
    """Return the number of ids: all are below it. Raises ValueError and NotReady."""
    tokenizer, _unknown = _loaded(spec.tokenizer, spec.max_tokens)
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)


def prepare(content: bytes, spec: TextSpec, *, limits: InputLimits = DEFAULT_LIMITS) -> Tokens:
    """Return the ids of a text's tokens, the first ``max_tokens`` of them.

    Raises ImageError for a text that is too long, no UTF-8, empty, or only of unknown tokens.
    """
    if len(content) > limits.max_text_bytes:
        raise _invalid(
            f"has {len(content)} bytes; the limit is {limits.max_text_bytes}", "TEXT_TOO_LARGE"
        )
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise _invalid(f"is not UTF-8: {error.reason} at byte {error.start}") from None
    tokenizer, unknown = _loaded(spec.tokenizer, spec.max_tokens)
    encoding = _encoded(tokenizer, text.removeprefix("\ufeff"))
    ids = np.array(encoding.ids, dtype=np.int64)
    words = ids[np.array(encoding.special_tokens_mask, dtype=np.int64) == 0]
    if not len(words):
        raise _invalid(f"has no tokens: {text[:40]!r}")
    if (words == unknown).all():
        raise _invalid(f"has only unknown tokens: {text[:40]!r}")
    return ids


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """Numbers of tokens of a whole text, before any are cut off."""

    tokens: int
    """With those that begin and end it."""
    words: int
    """Without them."""
    unknown: int
    """Words that the tokenizer does not know."""

    @property
    def unknown_share(self) -> float:
        """Share of the words that the tokenizer does not know."""
        return self.unknown / max(self.words, 1)


def count_tokens(content: bytes, spec: TextSpec) -> TokenCounts:
    """Return the numbers of tokens of a text that ``prepare`` accepts, before any are cut off."""
    tokenizer, unknown = _loaded(spec.tokenizer, spec.max_tokens)
    encoding = tokenizer.encode(content.decode().removeprefix("\ufeff"))
    words = [
        number
        for part in (encoding, *encoding.overflowing)
        for number, special in zip(part.ids, part.special_tokens_mask, strict=True)
        if not special
    ]
    return TokenCounts(
        tokens=len(words) + sum(encoding.special_tokens_mask),
        words=len(words),
        unknown=words.count(unknown),
    )


def digest(tokens: Tokens) -> str:
    """Return the sha256 of the tokens, in hexadecimal."""
    return hashlib.sha256(b"tokens" + tokens.astype("<i4").tobytes()).hexdigest()


def fingerprint(tokens: Tokens) -> NDArray[np.uint8]:
    """Return the similarity hash of the tokens, their pairs and runs of eight, 256 bits (32,).

    Each bit is the sign of a sum over the different ones, so texts that differ in up to some 2 % of
    their tokens are near-duplicates (Charikar, STOC 2002). Sequences of few letters all have the
    same letters and pairs, and differ in their runs.
    """
    ids = tokens.astype(np.uint64)
    pairs = (ids[:-1] << np.uint64(32)) | (ids[1:] + np.uint64(1))
    runs = np.zeros(max(len(ids) - _RUN + 1, 0), dtype=np.uint64)
    for start in range(_RUN):
        runs = _mixed(runs ^ (ids[start : start + len(runs)] + np.uint64(1)))
    parts = [np.unique(part) for part in (ids, pairs, runs)]
    weights = np.repeat(_WEIGHTS, [len(part) for part in parts])
    features = np.concatenate(parts)
    lanes = np.arange(1, 5, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    hashed = _mixed(features[:, None] ^ _mixed(lanes)[None, :])
    bits = np.unpackbits(hashed.astype("<u8").view(np.uint8).reshape(len(features), 32), axis=1)
    return np.packbits(2 * (weights @ bits) > weights.sum())


def preview(content: bytes) -> bytes:
    """Return the beginning of a text, in UTF-8."""
    text = content.decode(errors="replace").removeprefix("\ufeff")
    return " ".join(text[: 4 * PREVIEW_CHARACTERS].split())[:PREVIEW_CHARACTERS].encode()


def probes(name: str, spec: TextSpec) -> list[Tokens]:
    """Return made-up texts of several lengths. Raises KeyError for an unknown name."""
    if name != LATEST_PROBES:
        raise KeyError(name)
    size = vocabulary(spec)
    lengths = sorted({min(length, spec.max_tokens) for length in _PROBE_LENGTHS})
    return [_probe(f"{name}:{length}", length, size) for length in lengths]


def _probe(seed: str, length: int, vocabulary_size: int) -> Tokens:
    drawn = np.frombuffer(hashlib.shake_128(seed.encode()).digest(4 * length), dtype="<u4")
    return drawn.astype(np.int64) % vocabulary_size


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return SplitMix64's mix of each value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _encoded(tokenizer: Tokenizer, text: str) -> Encoding:
    """Return the tokens of a text. Raises ImageError if the tokenizer fails on it."""
    try:
        return tokenizer.encode(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise _invalid(f"cannot be cut into tokens: {str(error)[:200]}") from None


@functools.lru_cache(maxsize=_MOST_LOADED)
def _loaded(compressed: bytes, max_tokens: int) -> tuple[Tokenizer, int]:
    """Return the tokenizer of a spec, and the id of its token for unknown ones; -1: there is none.

    Raises ValueError, and NotReady without the library.
    """
    try:
        from tokenizers import Tokenizer  # only models of texts need it
    except ImportError:
        raise NotReady(
            "models of texts need the package tokenizers: install topwork[text]",
            reason="EXTRA_MISSING",
        ) from None
    unpacking = zlib.decompressobj()
    try:
        content = unpacking.decompress(compressed, LARGEST_TOKENIZER)
        if not unpacking.eof:
            raise ValueError(f"it is incomplete, or above {LARGEST_TOKENIZER} bytes")
        tokenizer = Tokenizer.from_buffer(content)
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
        unknown = _unknown(tokenizer, json.loads(content)["model"])
        for number in tokenizer.encode("").ids:  # those that begin and end each text
            if tokenizer.id_to_token(number) is None:
                raise ValueError(f"it adds the token {number} to texts, which has no word")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise ValueError(f"the tokenizer cannot be used: {error}") from None
    return tokenizer, unknown


def _unknown(tokenizer: Tokenizer, model: dict[str, object]) -> int:
    token, number = model.get("unk_token"), model.get("unk_id")  # unigrams have a number
    if isinstance(token, str):
        number = tokenizer.token_to_id(token)
        if number is None:
            raise ValueError(f"its token for unknown ones, {token[:40]!r}, is no word of it")
    return number if isinstance(number, int) else -1


def _invalid(fault: str, reason: str = "TEXT_INVALID") -> ImageError:
    return ImageError(f"the text {fault}", field="text", reason=reason)
