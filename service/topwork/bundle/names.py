"""Names of models and labels: the strings that are allowed."""

from __future__ import annotations

import re
import unicodedata

from topwork.errors import InvalidInput
from topwork.limits import DEFAULT_LIMITS, InputLimits

_MODEL = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")

_REFUSED = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\U00016fe4\U0001d159"
"""Fillers and blanks, which Unicode counts among letters, marks and symbols.

With the joiners, the selectors and category Cf these are Default_Ignorable_Code_Point, and more.
"""
_JOINERS = "\u200c\u200d"
_SELECTORS = "\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef"
_SEQUENCE = re.compile(
    rf"(?:\s|[^\s{_JOINERS}{_SELECTORS}][{_SELECTORS}]?(?:[{_JOINERS}](?=[^{_JOINERS}{_SELECTORS}]))?)*"
)
"""Text in which a variation selector follows a character, and a joiner stands between two."""

MOST_DECOMPOSED = 4
"""Characters that one may become when it is decomposed (Unicode's stability policy says 4)."""


def check_model(model: str, *, field: str = "model") -> str:
    """Return ``model``, which is a directory's name in the repository.

    Raises InvalidInput unless it is 1 to 63 of ``a-z 0-9 . _ -``, a letter or digit at both ends.
    """
    if not is_model(model):
        raise InvalidInput(
            f"model name {model[:80]!r} must be 1 to 63 of a-z 0-9 . _ - "
            "with a letter or digit at both ends",
            field=field,
            reason="MODEL_NAME_INVALID",
        )
    return model


def is_model(name: str) -> bool:
    """Return whether ``check_model`` would take it."""
    return _MODEL.fullmatch(name) is not None


def check_label(label: str, *, limits: InputLimits = DEFAULT_LIMITS, field: str = "label") -> str:
    """Return a new label in Unicode's composed form (NFC), in which labels are compared.

    Raises InvalidInput if it is empty or too long, if it has a control character, an invisible or
    an unassigned one, or white space at an end, or if it shows nothing. Joiners and variation
    selectors are let in where scripts and emoji need them: inside the text.
    """
    label = compose_label(label, limits=limits, field=field)
    if why := _unfit(label):
        raise InvalidInput(f"label {label!r} has {why}", field=field, reason="LABEL_INVALID")
    return label


def compose_label(label: str, *, limits: InputLimits = DEFAULT_LIMITS, field: str = "label") -> str:
    """Return a label in composed form, whatever its characters: older models may have any.

    Raises InvalidInput if it is empty or too long.
    """
    if len(label) <= MOST_DECOMPOSED * limits.max_label_length:  # or it is too long in any form
        label = unicodedata.normalize("NFC", label)
    if not label:
        raise InvalidInput("the label is empty", field=field, reason="LABEL_INVALID")
    if len(label) > limits.max_label_length:
        raise InvalidInput(
            f"label {label[:20]!r}... has {len(label)} characters; "
            f"the limit is {limits.max_label_length}",
            field=field,
            reason="LABEL_INVALID",
        )
    return label


def _unfit(label: str) -> str:
    """Return what is wrong with a composed label; empty if nothing is."""
    if label != label.strip():
        return "white space at an end"
    for char in label:
        if char in _BLANK or (unicodedata.category(char) in _REFUSED and char not in _JOINERS):
            name = "no UTF-8" if "\ud800" <= char <= "\udfff" else unicodedata.name(char, "unnamed")
            return f"a control character or another invisible one, U+{ord(char):04X} ({name})"
    if not _SEQUENCE.fullmatch(label):
        return "a joiner or a variation selector where there is nothing for it to act on"
    if not any(unicodedata.category(char)[0] in "LNPS" for char in label):
        return "no letter, digit or other visible character"
    return ""
