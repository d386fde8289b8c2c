"""Cache of exported backbones for all repositories of a user: an export takes seconds of torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import platform
from importlib import metadata
from pathlib import Path

from topwork.bundle import files
from topwork.bundle.documents import from_json, to_json
from topwork.bundle.manifest import BackboneInfo
from topwork.errors import Corrupt
from topwork.runtime.backend import software_versions

LIMIT_BYTES = 4 * 2**30
"""Size above which those go that were not used for longest: 300 of EfficientNet-Lite0."""

EXPORTERS = ("torch", "torchvision", "onnxscript", "onnx-ir", "onnx")
"""Packages whose versions decide what an export is, beside the runtime's own."""

_LOG = logging.getLogger(__name__)
_DIGEST_BYTES = 32


class Exports:
    """The exports in a directory, each one file; any number of processes use them.

    A file is written whole or not at all, and checked against its sha256 when it is read. Nothing
    about it is an error: what cannot be read or written is exported, with a warning.
    """

    def __init__(self, directory: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._directory = directory / "exports"
        self._limit_bytes = limit_bytes
        self._software = _software()

    def find(self, identity: str, weights: str = "") -> tuple[bytes, BackboneInfo] | None:
        """Return the ONNX graph and the description that ``put`` was given for this very key."""
        path = self._path(identity, weights)
        try:
            content = path.read_bytes()
            digest, rest = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
            if hashlib.sha256(rest).digest() != digest:
                raise Corrupt("the export is damaged")
            described, _, model = rest.partition(b"\0")
            with contextlib.suppress(OSError):  # a cache that is only read stays as old as it is
                files.touch(path)
            return model, from_json(described, BackboneInfo, name=path.name)
        except FileNotFoundError:
            return None
        except (OSError, Corrupt) as error:
            _LOG.warning("going on without %s: %s", path, error)
            return None

    def put(self, model: bytes, info: BackboneInfo, weights: str = "") -> None:
        """Keep an export; ``weights`` is their sha256 where the identity leaves that open."""
        path = self._path(info.identity, weights)
        content = to_json(info) + b"\0" + model
        try:
            files.write_file(path, hashlib.sha256(content).digest() + content)
            self._trim()
        except OSError as error:
            _LOG.warning("going on without %s: %s", path, error)

    def _path(self, identity: str, weights: str) -> Path:
        key = json.dumps([self._software, identity, weights])
        return self._directory / hashlib.sha256(key.encode()).hexdigest()

    def _trim(self) -> None:
        size = 0
        for path in sorted(self._directory.iterdir(), key=_modified, reverse=True):
            size += files.size(path)
            if size > self._limit_bytes:
                files.delete(path)


def _software() -> str:
    """Return a digest of all that makes an export what it is, but the backbone."""
    versions = {**software_versions(), "machine": platform.machine()}
    for name in EXPORTERS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    digest = hashlib.sha256(json.dumps(versions, sort_keys=True).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _modified(path: Path) -> float:
    with contextlib.suppress(OSError):  # another process deletes it
        return path.stat().st_mtime
    return 0.0
