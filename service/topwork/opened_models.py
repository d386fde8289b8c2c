"""Models that this process has opened for functions of batches, each once."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass

from topwork.bundle.signing.signatures import SigningFiles
from topwork.local import Model, open_model


@dataclass(frozen=True, slots=True)
class ModelKey:
    """Key of the models that a process has opened."""

    repository: str
    model: str
    revision: int
    signing: SigningFiles


def open_once(key: ModelKey) -> Model:
    """Return the model of this process. A forked process opens its own: threads do not survive."""
    process = (os.getpid(), key)
    with _lock:
        if process not in _opened:
            _opened[process] = open_model(
                key.repository,
                key.model,
                revision=key.revision,
                threads=1,
                signing=key.signing.read(publishes=False),
            )
        return _opened[process]


_opened: dict[tuple[int, ModelKey], Model] = {}
_lock = threading.Lock()


def _renew_lock() -> None:
    global _lock  # noqa: PLW0603 # another thread of the parent may have held it
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)
