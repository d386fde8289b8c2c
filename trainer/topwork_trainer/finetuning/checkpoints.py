"""Checkpoints from which fine-tuning resumes after a crash. Imports torch."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from topwork.storage.files import sweep, write_file


def save(checkpoint: Path, run: str, state: dict[str, Any]) -> None:
    """Write ``state`` to the file ``checkpoint`` atomically.

    It may contain tensors, numbers, text, lists and dicts. ``run`` is a digest of everything that
    the result depends on.
    """
    sweep(checkpoint.parent)  # a process that was killed while writing leaves a temporary file
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getvalue()
    write_file(checkpoint, _checksum(run, body) + body)


def load(checkpoint: Path, run: str) -> dict[str, Any] | None:
    """Return the state that ``save`` wrote for ``run``; None if it is missing or damaged."""
    try:
        content = checkpoint.read_bytes()
    except FileNotFoundError:
        return None
    checksum, body = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
    if checksum != _checksum(run, body):
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    return state


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint if it exists."""
    checkpoint.unlink(missing_ok=True)


_CHECKSUM_BYTES = 32


def _checksum(run: str, body: bytes) -> bytes:
    """Return a checksum of the run and the content, 32 bytes."""
    return hashlib.sha256(run.encode() + body).digest()
