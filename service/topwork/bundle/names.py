"""Validation of model names and labels."""

from __future__ import annotations

import re
import unicodedata

from topwork.errors import InvalidInput
from topwork.limits import DEFAULT_LIMITS, InputLimits

_MODEL = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")

_FORBIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\U00016fe4\U0001d159"
"""Invisible characters that Unicode classifies as letters, marks or symbols.

Together with joiners, selectors and category Cf they cover Default_Ignorable_Code_Point.
"""
_JOINERS = "\u200c\u200d"
_SELECTORS = "\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef"
_SEQUENCE = re.compile(
    rf"(?:\s|[^\s{_JOINERS}{_SELECTORS}][{_SELECTORS}]?(?:[{_JOINERS}](?=[^{_JOINERS}{_SELECTORS}]))?)*"
)
"""Text in which a variation selector follows a character, and a joiner is between two."""

MAX_DECOMPOSITION = 4
"""Most characters that one decomposes to, by Unicode's stability policy."""


def check_model(model: str, *, field: str = "model") -> str:
    """Return ``model``, which is also a directory name in the repository.

    Raises InvalidInput unless it has 1 to 63 of ``a-z 0-9 . _ -``, with a letter or digit at both
    ends.
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
    """Return True if ``check_model`` accepts the name."""
    return _MODEL.fullmatch(name) is not None


def check_label(label: str, *, limits: InputLimits = DEFAULT_LIMITS, field: str = "label") -> str:
    """Validate a new label and return it in Unicode's composed form (NFC).

    Raises InvalidInput if it is empty or too long, has control, invisible or unassigned characters
    or white space at an end, or shows nothing. Joiners and variation selectors are allowed inside
    the text, where scripts and emoji need them.
    """
    label = compose_label(label, limits=limits, field=field)
    if problem := _label_problem(label):
        raise InvalidInput(f"label {label!r} has {problem}", field=field, reason="LABEL_INVALID")
    return label


def compose_label(label: str, *, limits: InputLimits = DEFAULT_LIMITS, field: str = "label") -> str:
    """Return a label in composed form, without checking its characters: older models may have any.

    Raises InvalidInput if it is empty or too long.
    """
    if len(label) <= MAX_DECOMPOSITION * limits.max_label_length:  # otherwise too long in any form
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


def _label_problem(label: str) -> str:
    """Describe the first problem of a composed label; empty if it is valid."""
    if label != label.strip():
        return "white space at an end"
    for char in label:
        category = unicodedata.category(char)
        if char in _BLANK or (category in _FORBIDDEN and char not in _JOINERS):
            name = unicodedata.name(char, "invalid UTF-8" if category == "Cs" else "unnamed")
            return f"an invisible or control character, U+{ord(char):04X} ({name})"
    if not _SEQUENCE.fullmatch(label):
        return "a joiner or variation selector without a character to act on"
    if not any(unicodedata.category(char)[0] in "LNPS" for char in label):
        return "no letter, digit or other visible character"
    return ""
