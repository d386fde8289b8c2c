"""Which strings may name a model or a label."""

from __future__ import annotations

import re
import unicodedata

from topwork.bundle.limits import DEFAULT_LIMITS, Limits
from topwork.errors import InvalidInput

_MODEL = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")

_REFUSED = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"
"""The only invisible characters that words and emoji need."""

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


def check_label(label: str, *, limits: Limits = DEFAULT_LIMITS, field: str = "label") -> str:
    """Return ``label`` in Unicode's composed form (NFC), in which labels are compared.

    Raises InvalidInput if it is empty or too long, has a control character or another
    invisible one (but joiners), an unassigned one, or white space at an end.
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
    if label != label.strip() or any(
        unicodedata.category(char) in _REFUSED and char not in _JOINERS for char in label
    ):
        raise InvalidInput(
            f"label {label!r} has a control character or another invisible one, "
            "or white space at an end",
            field=field,
            reason="LABEL_INVALID",
        )
    return label
