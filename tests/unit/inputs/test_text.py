"""Texts: tokens, digests, fingerprints, and what is refused."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
from support import texts

from topwork.errors import ImageError
from topwork.inputs import text
from topwork.inputs.duplicates import NEAR_DUPLICATE_BITS
from topwork.inputs.kinds import TEXT, kind_of
from topwork.inputs.specs import spec_of
from topwork.inputs.text import SentText, TextSpec, prepare, preview, probes
from topwork.limits import InputLimits

SPEC = texts.spec()


def refusal(content: bytes, spec: TextSpec = SPEC, **limits: int) -> ImageError:
    """Return the error of a content that must be refused."""
    with pytest.raises(ImageError) as caught:
        prepare(content, spec, limits=InputLimits(**limits))
    return caught.value


def bits(one: str, other: str) -> int:
    """Return the number of bits in which the fingerprints of two texts differ."""
    prints = [text.fingerprint(prepare(each.encode(), SPEC)) for each in (one, other)]
    return int(np.unpackbits(prints[0] ^ prints[1]).sum())


def test_a_text_becomes_tokens() -> None:
    """Tokens are those of the tokenizer, with its beginning and end, as int64."""
    tokens = prepare(b"The SALT of a pan", SPEC)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == [1, 3, 11, 5, 4, 12, 2]
    assert prepare(b"\xef\xbb\xbfthe salt of a pan", SPEC).tolist() == tokens.tolist()


def test_a_long_text_is_cut_off() -> None:
    """Texts that begin alike have the same digest if the rest is beyond ``max_tokens``."""
    short = texts.spec(max_tokens=6)
    tokens = prepare(b"salt salt salt salt salt pan", short)
    assert len(tokens) == 6
    assert text.digest(tokens) == text.digest(prepare(b"salt salt salt salt rose", short))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "has no tokens"),
        (b" \n\t", "has no tokens"),
        (b"xyzzy plugh", "has only unknown tokens: 'xyzzy plugh'"),
        (b"salt \xff", "is not UTF-8: invalid start byte at byte 5"),
        (b"salt \xed\xa0\x80", "is not UTF-8"),
    ],
)
def test_unusable_texts_are_refused(content: bytes, fault: str) -> None:
    """The error says what is wrong."""
    error = refusal(content)
    assert error.reason == "TEXT_INVALID"
    assert fault in str(error)


def test_a_text_above_the_limit_is_refused() -> None:
    """The error has the size and the limit; nothing is decoded."""
    error = refusal(b"\xff" * 11, max_text_bytes=10)
    assert error.reason == "TEXT_TOO_LARGE"
    assert str(error) == "the text has 11 bytes; the limit is 10"


def test_near_duplicates_have_near_fingerprints() -> None:
    """Case and spaces change nothing, one word of 30 few bits, another text about half of them."""
    long = " ".join(texts.texts("cooking", 3))
    assert bits("the salt of a pan", "The  salt of\na PAN") == 0
    assert 0 < bits(long, long.replace("salt", "oven", 1)) <= NEAR_DUPLICATE_BITS + 30
    assert bits(long, " ".join(texts.texts("sailing", 3))) > 4 * NEAR_DUPLICATE_BITS


def test_fingerprints_are_the_same_on_all_machines() -> None:
    """They are stored, so they never change."""
    found = text.fingerprint(prepare(b"the salt of a pan", SPEC))
    assert found.tobytes().hex() == GOLDEN


GOLDEN = "a5089d5f0ee2503911aa9572c2391ded8cecee777e76790d047aadaa93d9e2eb"


def test_a_preview_is_the_beginning_of_the_text() -> None:
    """It is one line."""
    assert preview("\ufeffa\n  b\u00e9".encode()) == "a b\u00e9".encode()
    assert len(preview(b"x" * 10_000)) == text.PREVIEW_CHARACTERS


def test_probes_are_texts_of_several_lengths() -> None:
    """They fit the encoder, whatever it is."""
    made = probes(text.LATEST_PROBES, SPEC)
    assert [len(each) for each in made] == [4, 16, 32]
    assert max(each.max() for each in made) < text.vocabulary(SPEC)
    with pytest.raises(KeyError):
        probes("tokens-0", SPEC)


@pytest.mark.parametrize(
    "tokenizer",
    [b"", b"{}", b"\xff", b'{"model": {}}', b'{"model": {"type": "WordLevel", "vocab": {}}}'],
)
def test_a_hostile_tokenizer_is_refused(tokenizer: bytes) -> None:
    """The error is a ValueError, also where the library panics."""
    with pytest.raises(ValueError, match="tokenizer"):
        text.spec_of(tokenizer, max_tokens=8)


def test_a_compressed_tokenizer_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stored spec may not expand without end."""
    monkeypatch.setattr(text, "LARGEST_TOKENIZER", 1000)
    bomb = TextSpec(tokenizer=zlib.compress(b" " * 10**6), max_tokens=8)
    with pytest.raises(ValueError, match="incomplete, or above"):
        prepare(b"salt", bomb)
    with pytest.raises(ValueError, match="the limit is 1000"):
        text.spec_of(b" " * 1001, max_tokens=8)


@pytest.mark.parametrize("most", [0, -1, text.MOST_TOKENS + 1])
def test_max_tokens_has_limits(most: int) -> None:
    """It must be positive."""
    with pytest.raises(ValueError, match="max_tokens"):
        texts.spec(max_tokens=most)


def test_a_vocabulary_without_an_unknown_token_drops_what_it_lacks() -> None:
    """A text of nothing else has no tokens."""
    data = json.loads(texts.tokenizer_json())
    data["model"] = {"type": "BPE", "vocab": {"[CLS]": 1, "[SEP]": 2, "a": 0}, "merges": []}
    data["added_tokens"] = []
    spec = text.spec_of(json.dumps(data).encode(), max_tokens=8)
    assert prepare(b"a", spec).tolist() == [1, 0, 2]
    assert "has no tokens" in str(refusal(b"bbb", spec))


def test_the_kind_is_found_by_its_spec_and_by_its_tag() -> None:
    """A stored spec is read as the kind that it names."""
    assert kind_of(SPEC) is TEXT
    stored = {"kind": "text", "tokenizer": "", "max_tokens": 4}
    assert spec_of(stored) == TextSpec(tokenizer=b"", max_tokens=4)
    assert SentText(b"abc").size == 3


def test_tokens_are_counted_before_any_are_cut_off() -> None:
    """The counts are of the whole text; the tokens that begin and end it are no words."""
    counts = text.count_tokens(b"the salt of zzz a pan", texts.spec(max_tokens=4))
    assert (counts.tokens, counts.words, counts.unknown) == (8, 6, 1)
    assert counts.unknown_share == pytest.approx(1 / 6)


def test_sequences_of_few_letters_are_no_near_duplicates() -> None:
    """All have the same letters and pairs; one changed letter of 400 is still a near-duplicate."""
    random = np.random.default_rng(0)
    prints = []
    for _ in range(20):
        letters = random.choice(4, 400, p=(0.4, 0.3, 0.2, 0.1)).astype(np.int64)
        changed = letters.copy()
        changed[200] = 3 - changed[200]
        prints += [text.fingerprint(letters), text.fingerprint(changed)]
    bits_set = np.unpackbits(np.stack(prints), axis=1).astype(np.int64)
    distances = np.abs(bits_set[:, None] - bits_set[None]).sum(axis=2)
    pairs = distances[np.arange(0, 40, 2), np.arange(1, 40, 2)]
    assert (pairs <= NEAR_DUPLICATE_BITS).mean() > 0.8
    others = distances[::2, ::2][~np.eye(20, dtype=bool)]
    assert others.min() > 2 * NEAR_DUPLICATE_BITS


def test_tokenizer_without_its_unknown_token_is_refused() -> None:
    """Its library would raise at the first unknown word, while the model serves."""
    tokenizer = json.loads(texts.tokenizer_json())
    tokenizer["model"] |= {"unk_token": "[other]"}
    with pytest.raises(ValueError, match=r"for unknown ones, '\[other\]', is no word of it"):
        text.spec_of(json.dumps(tokenizer).encode(), max_tokens=8)


def test_tokenizer_that_adds_tokens_without_words_is_refused() -> None:
    """The encoder has no row for them, so it would fail on every text."""
    tokenizer = json.loads(texts.tokenizer_json())
    tokenizer["post_processor"] |= {"cls": ["[CLS]", 9_999]}
    with pytest.raises(ValueError, match="adds the token 9999 to texts, which has no word"):
        text.spec_of(json.dumps(tokenizer).encode(), max_tokens=8)


def test_text_on_which_the_tokenizer_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the library panics, which is no Exception."""

    class Panic(BaseException):
        pass

    class Broken:
        def encode(self, _text: str) -> None:
            raise Panic("index out of bounds")

    monkeypatch.setattr(text, "_loaded", lambda *_: (Broken(), -1))
    error = refusal(b"salt")
    assert error.reason == "TEXT_INVALID"
    assert "cannot be cut into tokens: index out of bounds" in str(error)
