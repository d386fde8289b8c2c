"""Splits of a data set (train, val, test), recognised by the names of folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from topwork.errors import InvalidInput
from topwork.printable import file_name

_ROLES = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "eval", "evaluation", "holdout"), "test"),
}
_WORD = re.compile("[a-z]+")


def splits(folders: Sequence[Path]) -> dict[Path, str]:
    """Return the role (train, val, test) of each folder that is named like a split of a data set.

    Empty unless there are at least two roles: a single ``test`` may be a class.
    """
    roles = {folder: role for folder in folders if (role := split_role(folder.name)) is not None}
    return roles if len(set(roles.values())) > 1 else {}


def split_role(name: str) -> str | None:
    """Return the role (train, val, test) of a split's name, such as ``Test_set``, or None."""
    words = _WORD.findall(name.casefold())
    named = {_ROLES[word] for word in words if word in _ROLES}
    return next(iter(named)) if len(named) == 1 else None


def refuse_splits(folder: Path, folders: Sequence[Path]) -> None:
    """Raise InvalidInput if ``folder``, a class, contains ``folders`` named like splits."""
    if roles := splits(folders):
        names = " and ".join(file_name(path.name) for path in roles)
        first = min(roles, key=lambda path: (roles[path] != "train", path))
        raise InvalidInput(
            f"{file_name(folder)} is used as one class and contains {names}, named like the splits "
            f"of a data set: use {file_name(first)} alone, or put class folders below the splits",
            field="folder",
            reason="SPLITS",
        )
