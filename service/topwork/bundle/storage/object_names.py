"""Names of objects in a bucket: the object in which a key of a repository lies.

    pointers/<model>/serving.json, draft.json, review.json      of models/<model>: one listing has
                                the ETags of all models
    pointers/<model>/made       the commit of models/<model>, which ``create`` writes last
    pointers/<model>/deleted    the directory is hidden: it has the name .deleted-<model>
    changed                     random bytes, which are replaced after every change in pointers/
    refreshed/<uuid>            keys of blobs; its time is the time of their refresh
    clock, probe/<uuid>         are written to learn the store's time, and what it supports
    <key ending in .gone>/<ns>  a file with a modification time of its own
    <key>                       everything else

A directory that ``Storage.create`` makes exists when it has its commit, the file written last.
"""

from __future__ import annotations

import re

from topwork.bundle.storage.storage import HIDDEN

MODELS, POINTERS, REFRESHED, PROBES = "models", "pointers", "refreshed", "probe"
CHANGED, CLOCK = "changed", "clock"
MADE, DELETED = "made", "deleted"
DOCUMENTS = ("serving.json", "draft.json", "review.json")
"""Files of a model that lie in ``POINTERS``."""

TIMED = ".gone"
"""Suffix of the keys of files with a modification time of their own."""

_NUMBER = re.compile(r"[1-9][0-9]{0,17}")


def split_model(key: str) -> tuple[str, bool, str] | None:
    """Return the model of a key, whether its directory is hidden, and the rest; None: no model."""
    top, _, rest = key.partition("/")
    if top != MODELS or not rest:
        return None
    name, _, inner = rest.partition("/")
    hidden = name.startswith(HIDDEN)
    return name.removeprefix(HIDDEN), hidden, inner


def object_name(key: str) -> str:
    """Return the name of the object, or the prefix of the directory, that a key lies in."""
    found = split_model(key)
    if found is None:
        return key
    model, _, inner = found
    if inner in DOCUMENTS:
        return f"{POINTERS}/{model}/{inner}"
    return f"{MODELS}/{model}/{inner}".rstrip("/")


def pointers(model: str) -> str:
    """Return the prefix of a model's pointers."""
    return f"{POINTERS}/{model}"


def is_pointer(name: str) -> bool:
    """Return True if ``CHANGED`` must change with this object."""
    return name.startswith(f"{POINTERS}/")


def is_number(name: str) -> bool:
    """Return True if a directory of a model is that of a revision."""
    return _NUMBER.fullmatch(name) is not None


def commit(directory: str) -> str | None:
    """Return the name of the file without which a directory does not exist; None: any file.

    ``directory`` is a prefix of object names, not that of a model.
    """
    match directory.split("/"):
        case ["backbones", _]:
            return "backbone.json"
        case ["models", _, number] if is_number(number):
            return "manifest.json"
        case ["models", _, "evaluations", _]:
            return "set.json"
    return None


def is_file(name: str) -> bool:
    """Return True if an object of this name is no directory, whether it exists or not."""
    if commit(name) is not None and not name.endswith(".json"):
        return False
    return "." in name.rpartition("/")[2] or name.startswith("images/")


def is_directory(name: str) -> bool:
    """Return True if objects lie below this name, so that none has it."""
    if "/" not in name:
        return "." not in name  # operations.database is a file
    return commit(name) is not None and not name.endswith(".json")
