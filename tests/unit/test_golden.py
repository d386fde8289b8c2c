"""Compatibility with documents that earlier releases stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import golden

import topwork
from topwork.bundle.documents import from_json, from_toml, to_json
from topwork.bundle.store import read_manifest
from topwork.errors import Corrupt
from topwork.storage.file_storage import FileStorage

KINDS = {kind.__name__: kind for kind in golden.kinds()}
FILES = sorted(golden.ROOT.glob("*/*.json"))
OURS = [path for path in FILES if path.parent.name == topwork.__version__]
REFUSED = {
    "schema-1/Manifest.json": "has schema 1; this software reads 3",
    "schema-1/Metrics.json": "missing required field `ece`",
    "schema-2/Manifest.json": "has schema 2; this software reads 3",
}
"""Documents from before the first release; their revisions cannot be served."""
READ = [path for path in FILES if golden.name(path) not in REFUSED]


def read(path: Path) -> object:
    """Return the document in a file."""
    if path.stem == "Manifest":
        return read_manifest(FileStorage(path.parent), path.name)
    return from_json(path.read_bytes(), KINDS[path.stem], name=golden.name(path))


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_stored_type_has_a_golden_file_of_this_version(name: str) -> None:
    """Each stored type has a file, which ``python -m golden.make`` writes."""
    assert golden.newest(KINDS[name]).is_file()


@pytest.mark.parametrize("path", OURS, ids=golden.name)
def test_document_of_this_version_survives_a_round_trip(path: Path) -> None:
    """Reading and writing a document gives the same bytes, so digests and signatures hold."""
    assert to_json(read(path)) == path.read_bytes()


@pytest.mark.parametrize("path", READ, ids=golden.name)
def test_documents_of_all_versions_are_read(path: Path) -> None:
    """A document of any version equals itself after it is written and read by this version."""
    found = read(path)
    assert from_json(to_json(found), type(found), name="it") == found


@pytest.mark.parametrize("path", READ, ids=golden.name)
def test_fields_that_a_later_version_adds_are_ignored(path: Path) -> None:
    """Unknown fields at any depth do not change the document."""
    content = json.dumps(with_added_fields(json.loads(path.read_bytes()))).encode()
    kind = KINDS[path.stem]
    assert from_json(content, kind, name="it") == from_json(path.read_bytes(), kind, name="it")


def with_added_fields(node: Any) -> Any:
    """Return JSON data with an additional field in every object that is not a map of names."""
    if isinstance(node, list):
        return [with_added_fields(item) for item in node]
    if not isinstance(node, dict):
        return node
    maps = {"names", "versions", "signatures", "value", "shards", "renamed", "lacking"}
    fields = {
        key: value if key in maps else with_added_fields(value) for key, value in node.items()
    }
    return {"added_later": [1], **fields}


@pytest.mark.parametrize(("name", "message"), REFUSED.items())
def test_documents_from_before_the_first_release_are_refused(name: str, message: str) -> None:
    """Reading raises Corrupt with the reason, so only that revision is damaged."""
    with pytest.raises(Corrupt, match=message):
        read(golden.ROOT / name)


def test_access_file_of_a_release_is_read() -> None:
    """The access file of a release has the same roles and limits in this version."""
    kind = KINDS["_File"]
    file: Any = from_toml(golden.newest(kind).read_bytes(), kind)
    assert file.limits.images == 512
    assert file.principals["line-3"].classify == ["screws", "nuts-*"]
    assert file.principals["line-3"].limits.calls_per_second == 1.0
