"""Checkpoints of a fine-tuning, which survive a crash. Imports torch."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from topwork.bundle.files import sweep, write_file


def save(checkpoint: Path, run: str, state: dict[str, Any]) -> None:
    """Put ``state`` at ``checkpoint``, whole or not at all.

    It may hold tensors, numbers, text, lists and dicts. ``run`` is a digest of all that the run
    depends on.
    """
    sweep(checkpoint.parent)  # a process that was killed while it wrote leaves a temporary file
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getvalue()
    write_file(checkpoint, _seal(run, body) + body)


def load(checkpoint: Path, run: str) -> dict[str, Any] | None:
    """Return the state that ``save`` wrote for ``run``; None if there is none that is whole."""
    try:
        content = checkpoint.read_bytes()
    except FileNotFoundError:
        return None
    seal, body = content[:_SEAL], content[_SEAL:]
    if seal != _seal(run, body):
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    return state


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint, if there is one: once the result is published, or of no use."""
    checkpoint.unlink(missing_ok=True)


_SEAL = 32


def _seal(run: str, body: bytes) -> bytes:
    """Return what neither another run nor damage would give, 32 bytes."""
    return hashlib.sha256(run.encode() + body).digest()
