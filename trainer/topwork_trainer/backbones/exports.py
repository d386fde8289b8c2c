"""Cache of exported backbones, shared by all repositories of a user."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from topwork.bundle.documents import from_json, to_json
from topwork.bundle.manifest import BackboneInfo
from topwork.errors import Corrupt
from topwork.runtime.backend import software_versions
from topwork.storage import files

LIMIT_BYTES = 4 * 2**30
"""Raising it keeps more exports; above it the least recently used ones are deleted.

4 GiB hold 300 exports of EfficientNet-Lite0.
"""

EXPORTERS = ("torch", "torchvision", "timm", "transformers", "onnxscript", "onnx-ir", "onnx")
"""Packages whose versions are part of the key, in addition to those of the runtime."""

_LOG = logging.getLogger(__name__)
_DIGEST_BYTES = 32


class Exports:
    """LRU cache of exports in a directory, one file each; safe for several processes.

    Files are written atomically and verified against their sha256 when read. A cache failure is
    never an error: it is logged as a warning, and the backbone is exported again.
    """

    def __init__(self, directory: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._directory = directory / "exports"
        self._limit_bytes = limit_bytes
        self._software = _software()

    def find(self, identity: str, weights: str = "") -> tuple[bytes, BackboneInfo] | None:
        """Return the ONNX graph and the description that ``put`` stored under this key."""
        path = self._path(identity, weights)
        try:
            content = path.read_bytes()
            digest, rest = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
            if hashlib.sha256(rest).digest() != digest:
                raise Corrupt("the export is damaged")
            described, _, model = rest.partition(b"\0")
            with contextlib.suppress(OSError):  # a read-only cache
                files.touch(path)
            return model, from_json(described, BackboneInfo, name=path.name)
        except FileNotFoundError:
            return None
        except (OSError, Corrupt) as error:
            _LOG.warning("continuing without %s: %s", path, error)
            return None

    def put(self, model: bytes, info: BackboneInfo, weights: str = "") -> None:
        """Store an export; ``weights`` is their sha256 if the identity does not contain it."""
        path = self._path(info.identity, weights)
        content = to_json(info) + b"\0" + model
        try:
            files.write_file(path, hashlib.sha256(content).digest() + content)
            self._trim()
        except OSError as error:
            _LOG.warning("continuing without %s: %s", path, error)

    @contextlib.contextmanager
    def exporting(self) -> Iterator[None]:
        """Wait for other processes that export: each takes all cores, and may store what is wanted.

        Does not wait where the directory cannot be written.
        """
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError):
                self._directory.mkdir(parents=True, exist_ok=True)
                held.enter_context(files.locked(self._directory / ".lock"))
            yield

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
    """Return a digest of all code, package versions and hardware that an export depends on."""
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
