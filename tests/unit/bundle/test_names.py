"""Validation of model names and labels: path traversal, invisible characters, Unicode."""

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
def test_check_model_accepts_valid_names(model: str) -> None:
    """1 to 63 allowed characters with a letter or digit at both ends are returned unchanged."""
    assert check_model(model) == model


@pytest.mark.parametrize(
    "model",
    [
        *("", ".", "..", "../x", "a/b", "/etc", "a\\b", "a\0", "a\n", " a", "-a", "a.", ".tmp-1"),
        *("Flowers", "\u00e9", "\u0661", "%2e%2e", "x" * 64),  # \u0661 is a digit, in Arabic
    ],
)
def test_check_model_refuses_paths_and_other_characters(model: str) -> None:
    """A path, hidden name or other character is InvalidInput with the name of the field."""
    with pytest.raises(InvalidInput) as caught:
        check_model(model, field="model_name")
    assert caught.value.field == "model_name"
    assert caught.value.reason == "MODEL_NAME_INVALID"
    assert repr(model)[1:-1] in str(caught.value)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.text(alphabet="ab0./\\-_ \0\n~%", max_size=8) | st.text(max_size=70))
def test_valid_model_name_is_one_path_component(model: str) -> None:
    """A valid model name is one visible directory entry."""
    try:
        path = Path("models") / check_model(model)
    except InvalidInput:
        return
    assert path.parts == ("models", model)
    assert not model.startswith(".")


def test_check_label_composes_labels() -> None:
    """A decomposed label (NFD) is returned in composed form (NFC)."""
    composed = "K\u00f6nigskerze"
    assert check_label(unicodedata.normalize("NFD", composed)) == composed


@pytest.mark.parametrize("label", ["daisy", "wild rose", "../x", "雛菊", "a/b", "🌻", "-"])
def test_check_label_accepts_visible_text(label: str) -> None:
    """All visible text is valid, since labels are not used as paths."""
    assert check_label(label) == label


@pytest.mark.parametrize(
    "label",
    [
        *("", " a", "a ", "a\n", "\ta", "a\0b", "a\x1bb", "a\x7f", "a\u200bb", "a\u202eb"),
        *("a\u00a0", "a\ud800", "a\u0378", "\u2028a"),
    ],
)
def test_check_label_refuses_control_characters_and_outer_space(label: str) -> None:
    """Control, bidirectional and unassigned characters and outer white space are refused."""
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
def test_check_label_refuses_invisible_text(label: str) -> None:
    """Fillers, blanks, misplaced joiners and selectors, and marks alone are LABEL_INVALID."""
    with pytest.raises(InvalidInput) as caught:
        check_label(label)
    assert caught.value.reason == "LABEL_INVALID"


def test_error_names_the_invisible_character() -> None:
    """The message has the code point and the name of the invisible character."""
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
def test_check_label_accepts_joiners_and_selectors_inside_text(label: str) -> None:
    """Emoji sequences and words of Persian, Indic and Mongolian scripts are valid."""
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
def test_check_label_accepts_only_visible_code_points() -> None:
    """All code points, alone and with joiners and spaces, are refused unless they are visible."""
    for char in map(chr, (*range(0x40000), *range(0xE0000, 0xF0100), sys.maxunicode)):
        if _visible(unicodedata.normalize("NFC", char)[0]):
            continue
        assert not _accepted(char), ascii(char)
        if unicodedata.category(char) not in {"Cn", "Co", "Cs"}:
            for label in (f"{char}\u200d{char}", f"\u200d{char}", f"{char} {char}"):
                assert not _accepted(label), ascii(label)


def test_check_label_refuses_ignorable_characters_next_to_a_letter() -> None:
    """Ignorable characters are refused next to a letter, except variation selectors after it."""
    for first, last in DEFAULT_IGNORABLE:
        for char in map(chr, range(first, last + 1)):
            assert not _accepted(f"{char}a")
            assert not _accepted(f"a{char}") or "VARIATION SELECTOR" in unicodedata.name(char)


def test_compose_label_accepts_labels_of_older_models() -> None:
    """Labels of older models may have characters that are not valid in a new label."""
    assert compose_label("\u3164") == "\u3164"
    assert compose_label("e\u0301") == "\u00e9"
    for label in ("", "x" * 101):
        with pytest.raises(InvalidInput):
            compose_label(label)


def test_check_label_refuses_long_labels() -> None:
    """A label longer than the limit is refused; the message has the length and the limit."""
    limits = InputLimits(max_label_length=30)
    assert check_label("x" * 30, limits=limits)
    with pytest.raises(InvalidInput, match=r"has 31 characters; the limit is 30"):
        check_label("x" * 31, limits=limits)


def test_label_length_is_counted_in_composed_form() -> None:
    """Combining characters do not count separately."""
    assert check_label("e\u0301" * 30, limits=InputLimits(max_label_length=30)) == "\u00e9" * 30


@pytest.mark.slow
@settings(max_examples=300)
@given(st.text(max_size=12))
def test_check_label_is_idempotent(label: str) -> None:
    """A checked label is in NFC and passes again unchanged."""
    try:
        checked = check_label(label)
    except InvalidInput:
        return
    assert unicodedata.is_normalized("NFC", checked)
    assert check_label(checked) == checked
