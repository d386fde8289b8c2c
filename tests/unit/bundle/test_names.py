"""Names that are let in are safe: as a directory, in a log, and beside each other."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topwork.bundle.limits import Limits
from topwork.bundle.names import check_label, check_model
from topwork.errors import InvalidInput

SEEDED = settings(derandomize=True, database=None, deadline=None, max_examples=300)


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


@SEEDED
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


def test_a_long_label_is_refused_with_value_and_limit() -> None:
    """The limit is itself allowed; one character more is refused and both numbers are said."""
    limits = Limits(max_label_length=30)
    assert check_label("x" * 30, limits=limits)
    with pytest.raises(InvalidInput, match=r"has 31 characters; the limit is 30"):
        check_label("x" * 31, limits=limits)


def test_length_is_counted_composed() -> None:
    """A label is as long as it is composed, however it was typed."""
    assert check_label("e\u0301" * 30, limits=Limits(max_label_length=30)) == "\u00e9" * 30


@SEEDED
@given(st.text(max_size=12))
def test_a_checked_label_is_checked_once_and_for_all(label: str) -> None:
    """What comes back is composed and passes again unchanged."""
    try:
        checked = check_label(label)
    except InvalidInput:
        return
    assert unicodedata.is_normalized("NFC", checked)
    assert check_label(checked) == checked
