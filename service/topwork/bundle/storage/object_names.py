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
from typing import NamedTuple

from topwork.bundle.storage.storage import HIDDEN

BACKBONES, MODELS = "backbones", "models"
POINTERS, REFRESHED, PROBES = OWN = "pointers", "refreshed", "probe"
CHANGED, CLOCK = "changed", "clock"
MADE, DELETED = "made", "deleted"
DOCUMENTS = ("serving.json", "draft.json", "review.json")
"""Files of a model that lie in ``POINTERS``."""

TIMED = ".gone"
"""Suffix of the keys of files with a modification time of their own."""

_SHA256 = re.compile("[0-9a-f]{64}")
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")


class ModelKey(NamedTuple):
    """Parts of a key below ``models``."""

    name: str
    hidden: bool
    """Whether the key is that of a hidden directory."""
    inner: str
    """The rest of the key, without the model's directory."""


def split_model(key: str) -> ModelKey | None:
    """Return the parts of a key below ``models``; None if it is another."""
    top, _, rest = key.partition("/")
    if top != MODELS or not rest:
        return None
    name, _, inner = rest.partition("/")
    return ModelKey(name.removeprefix(HIDDEN), name.startswith(HIDDEN), inner)


def model_directory(key: str) -> ModelKey | None:
    """Return the parts of the key of a model's own directory; None if it is another."""
    found = split_model(key)
    return found if found is not None and not found.inner else None


def object_name(key: str) -> str:
    """Return the name of the object, or the prefix of the directory, that a key lies in."""
    found = split_model(key)
    if found is None:
        return key
    if found.inner in DOCUMENTS:
        return f"{POINTERS}/{found.name}/{found.inner}"
    return f"{MODELS}/{found.name}/{found.inner}".rstrip("/")


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


def may_be_written(name: str) -> bool:
    """Return True if ``Storage.create`` or a later writer may have written such an object.

    A directory with any other object is foreign: it is no leftover of a crash.
    """
    match name.split("/"):
        case ["pointers", _, own]:
            return own in {*DOCUMENTS, MADE, DELETED}
        case ["backbones", digest, _]:
            return _SHA256.fullmatch(digest) is not None
        case ["models", _, "evaluations", _, own]:
            return own.endswith(".json")
        case ["models", _, own, _, *_]:
            return is_number(own) or own == "review"
    return False


def proof(key: str) -> str:
    """Return the object that exists if a blob does."""
    name = object_name(key)
    own = commit(name)
    return f"{name}/{own}" if own is not None and is_directory(name) else name
