"""Documents that released versions stored are read by this version."""

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

KINDS = {kind.__name__: kind for kind in golden.kinds()}
FILES = sorted(golden.ROOT.glob("*/*.json"))
OURS = [path for path in FILES if path.parent.name == topwork.__version__]
REFUSED = {
    "schema-1/Manifest.json": "has schema 1; this software reads 3",
    "schema-1/Metrics.json": "missing required field `ece`",
    "schema-2/Manifest.json": "has schema 2; this software reads 3",
}
"""Of the weeks before the first release; no revision of theirs can be served."""
READ = [path for path in FILES if golden.name(path) not in REFUSED]


def read(path: Path) -> object:
    """Return the document in a file."""
    if path.stem == "Manifest":
        return read_manifest(path)
    return from_json(path.read_bytes(), KINDS[path.stem], name=golden.name(path))


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_stored_type_has_a_golden_file_of_this_version(name: str) -> None:
    """``python -m golden.make`` writes them; see its docstring."""
    assert golden.newest(KINDS[name]).is_file()


@pytest.mark.parametrize("path", OURS, ids=golden.name)
def test_a_document_of_this_version_is_written_byte_for_byte(path: Path) -> None:
    """What was read is written as it was, so digests and signatures of documents hold."""
    assert to_json(read(path)) == path.read_bytes()


@pytest.mark.parametrize("path", READ, ids=golden.name)
def test_documents_of_all_versions_are_read(path: Path) -> None:
    """Each is read, and what this version makes of it is read as the same."""
    found = read(path)
    assert from_json(to_json(found), type(found), name="it") == found


@pytest.mark.parametrize("path", READ, ids=golden.name)
def test_fields_that_a_later_version_adds_are_ignored(path: Path) -> None:
    """A document with unknown fields, at any depth, is read as it is without them."""
    content = json.dumps(with_more(json.loads(path.read_bytes()))).encode()
    kind = KINDS[path.stem]
    assert from_json(content, kind, name="it") == from_json(path.read_bytes(), kind, name="it")


def with_more(node: Any) -> Any:
    """Return JSON data with a field more in every object but those that map names of any kind."""
    if isinstance(node, list):
        return [with_more(one) for one in node]
    if not isinstance(node, dict):
        return node
    maps = {"versions", "signatures", "value"}
    more = {key: value if key in maps else with_more(value) for key, value in node.items()}
    return {"added_later": [1], **more}


@pytest.mark.parametrize(("name", "why"), REFUSED.items())
def test_documents_of_before_the_first_release_are_refused(name: str, why: str) -> None:
    """Each is Corrupt and says what it is, so that one revision is damaged and nothing else."""
    with pytest.raises(Corrupt, match=why):
        read(golden.ROOT / name)


def test_an_access_file_is_read() -> None:
    """The access file of a release has the meaning that it had."""
    kind = KINDS["_File"]
    file: Any = from_toml(golden.newest(kind).read_bytes(), kind)
    assert file.limits.images == 512
    assert file.principals["line-3"].classify == ["screws", "nuts-*"]
    assert file.principals["line-3"].limits.calls_per_second == 1.0
