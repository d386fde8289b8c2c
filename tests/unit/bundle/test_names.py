"""Names that are let in are safe: as a directory, in a log, and beside each other."""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topwork.bundle.names import check_label, check_model, compose_label
from topwork.errors import InvalidInput
from topwork.limits import InputLimits


@pytest.mark.parametrize("model", ["a", "7", "flowers", "flowers-2.1_b", "a..b", "x" * 63])
def test_plain_model_names_are_let_in(model: str) -> None:
    """1 to 63 of the allowed characters, a letter or digit at both ends, come back as they are."""
    assert check_model(model) == model


@pytest.mark.parametrize(
    "model",
    [
        *("", ".", "..", "../x", "a/b", "/etc", "a\\b", "a\0", "a\n", " a", "-a", "a.", ".tmp-1"),
        *("Flowers", "\u00e9", "\u0661", "%2e%2e", "x" * 64),  # \u0661 is a digit, in Arabic
    ],
)
def test_model_names_are_never_paths(model: str) -> None:
    """Whatever could leave its directory, or hide in it, is refused, with the field's name."""
    with pytest.raises(InvalidInput) as caught:
        check_model(model, field="model_name")
    assert caught.value.field == "model_name"
    assert caught.value.reason == "MODEL_NAME_INVALID"
    assert repr(model)[1:-1] in str(caught.value)


@settings(max_examples=300)
@given(st.text(alphabet="ab0./\\-_ \0\n~%", max_size=8) | st.text(max_size=70))
def test_a_checked_model_name_stays_in_its_directory(model: str) -> None:
    """A model name that is let in is one visible entry of the directory that it is put in."""
    try:
        path = Path("models") / check_model(model)
    except InvalidInput:
        return
    assert path.parts == ("models", model)
    assert not model.startswith(".")


def test_labels_are_composed() -> None:
    """A label that is spelt with combining characters becomes equal to the composed one."""
    composed = "K\u00f6nigskerze"
    assert check_label(unicodedata.normalize("NFD", composed)) == composed


@pytest.mark.parametrize("label", ["daisy", "wild rose", "../x", "雛菊", "a/b", "🌻", "-"])
def test_labels_are_free_text(label: str) -> None:
    """Labels are not paths, so all visible text is let in."""
    assert check_label(label) == label


@pytest.mark.parametrize(
    "label",
    [
        *("", " a", "a ", "a\n", "\ta", "a\0b", "a\x1bb", "a\x7f", "a\u200bb", "a\u202eb"),
        *("a\u00a0", "a\ud800", "a\u0378", "\u2028a"),
    ],
)
def test_invisible_labels_are_refused(label: str) -> None:
    """Control, direction-changing and unassigned characters, and white space at an end, are out."""
    with pytest.raises(InvalidInput) as caught:
        check_label(label, field="config.label")
    assert caught.value.field == "config.label"
    assert caught.value.reason == "LABEL_INVALID"
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "label",
    [
        *("\u3164", "\uffa0", "\u115f\u1160", "\u2800", "\u2800\u2800", "\u034f", "\u17b4"),
        *("\U0001d159", "\u200d", "\u200c\u200d", "\ufe0f", "\U000e0100", "\u180b", "\u180e"),
        *("a\u3164b", "a\u2800b", "a\u115f", "a\u034fb", "\u17b5a", "\U000e0041"),
        *("daisy\u200d", "\u200cdaisy", "a\u200d\u200db", "a \u200db", "a\ufe0f\ufe0f", " \ufe0fa"),
        *("a\u2066b", "\u061ca", "a\u200eb", "\u0301", "\u0301\u0327"),
    ],
    ids=ascii,
)
def test_labels_with_nothing_to_see_are_refused(label: str) -> None:
    """Fillers, blanks, stray joiners and selectors, bidi controls, marks alone: LABEL_INVALID."""
    with pytest.raises(InvalidInput) as caught:
        check_label(label)
    assert caught.value.reason == "LABEL_INVALID"


def test_an_invisible_character_is_named() -> None:
    """The message names the code point, since the label in it shows nothing."""
    with pytest.raises(InvalidInput, match=r"U\+3164 \(HANGUL FILLER\)"):
        check_label("daisy\u3164")


@pytest.mark.parametrize(
    "label",
    [
        "\U0001f469\u200d\U0001f33e",  # farmer: woman, joiner, ear of rice
        "\U0001f441\ufe0f\u200d\U0001f5e8\ufe0f",  # eye in speech bubble
        "\u2764\ufe0f",  # red heart
        "1\ufe0f\u20e3",  # keycap
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian
        "\u0915\u094d\u200d\u0937",  # Devanagari
        "\u0d28\u0d4d\u200d \u0d15",  # Malayalam, a joiner at the end of a word
        "\u845b\U000e0100",  # ideographic variation
        "\u1820\u180b",  # Mongolian
        "\u1112\u1161\u11ab",  # Korean, decomposed
        "\u05e9\u05c1\u05dc\u05d5\u05dd",  # Hebrew with points
        "\u00b0C",
    ],
    ids=ascii,
)
def test_joiners_and_selectors_inside_text_are_let_in(label: str) -> None:
    """Emoji sequences and words of Persian, Indic and Mongolian scripts come back composed."""
    assert check_label(label) == unicodedata.normalize("NFC", label)


DEFAULT_IGNORABLE = (
    (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5),
    (0x180B, 0x180F), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164),
    (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip
"""Default_Ignorable_Code_Point of Unicode 15.1's DerivedCoreProperties.txt."""


def _visible(char: str) -> bool:
    ignorable = any(first <= ord(char) <= last for first, last in DEFAULT_IGNORABLE)
    return not ignorable and char != "\u2800" and unicodedata.category(char)[0] in "LNPS"


def _accepted(label: str) -> bool:
    try:
        check_label(label)
    except InvalidInput:
        return False
    return True


@pytest.mark.slow
def test_every_accepted_label_shows_something() -> None:
    """Of all assigned code points, alone and beside joiners and spaces, what passes is visible."""
    for char in map(chr, (*range(0x40000), *range(0xE0000, 0xF0100), sys.maxunicode)):
        if _visible(unicodedata.normalize("NFC", char)[0]):
            continue
        assert not _accepted(char), ascii(char)
        if unicodedata.category(char) not in {"Cn", "Co", "Cs"}:
            for label in (f"{char}\u200d{char}", f"\u200d{char}", f"{char} {char}"):
                assert not _accepted(label), ascii(label)


def test_no_ignorable_character_passes_beside_a_letter() -> None:
    """Before a letter all of them are refused; behind one only variation selectors pass."""
    for first, last in DEFAULT_IGNORABLE:
        for char in map(chr, range(first, last + 1)):
            assert not _accepted(f"{char}a")
            assert not _accepted(f"a{char}") or "VARIATION SELECTOR" in unicodedata.name(char)


def test_a_label_that_is_there_already_is_only_composed() -> None:
    """Models of earlier versions may have labels that no new one may be; they can be named."""
    assert compose_label("\u3164") == "\u3164"
    assert compose_label("e\u0301") == "\u00e9"
    for label in ("", "x" * 101):
        with pytest.raises(InvalidInput):
            compose_label(label)


def test_a_long_label_is_refused_with_value_and_limit() -> None:
    """The limit is itself allowed; one character more is refused and both numbers are said."""
    limits = InputLimits(max_label_length=30)
    assert check_label("x" * 30, limits=limits)
    with pytest.raises(InvalidInput, match=r"has 31 characters; the limit is 30"):
        check_label("x" * 31, limits=limits)


def test_length_is_counted_composed() -> None:
    """A label is as long as it is composed, however it was typed."""
    assert check_label("e\u0301" * 30, limits=InputLimits(max_label_length=30)) == "\u00e9" * 30


@settings(max_examples=300)
@given(st.text(max_size=12))
def test_a_checked_label_is_checked_once_and_for_all(label: str) -> None:
    """What comes back is composed and passes again unchanged."""
    try:
        checked = check_label(label)
    except InvalidInput:
        return
    assert unicodedata.is_normalized("NFC", checked)
    assert check_label(checked) == checked
