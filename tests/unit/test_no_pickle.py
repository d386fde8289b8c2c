"""Loaders never unpickle, so that no loaded file can run code."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import topwork
import topwork_trainer
from topwork.bundle import examples, shards
from topwork.bundle.documents import from_json
from topwork.bundle.manifest import BackboneInfo, Manifest
from topwork.bundle.metrics import Metrics
from topwork.bundle.serving import ServingState
from topwork.bundle.shards import open_shard
from topwork.bundle.signing.signatures import Signatures
from topwork.errors import Corrupt, ImageError, InvalidInput, TopworkError
from topwork.inputs.data.vectors import read_vectors
from topwork.inputs.image import preprocess
from topwork.inputs.preprocess import PreprocessSpec
from topwork.runtime.backend import open_session
from topwork.serving.head import HeadLoader
from topwork.storage.files import sha256

ARRAYS = [*shards._DTYPES, *examples._DTYPES]
MARK = Path(tempfile.gettempdir(), f"topwork-unpickled-{os.getpid()}")


class Hostile:
    """Creates the directory MARK when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str, int, bool]]:
        return os.makedirs, (str(MARK), 0o700, True)


# Not at the top of this file, since torch takes seconds to import.
TORCH = pytest.mark.slow
PAYLOADS = ["a pickle", "an array", "arrays", pytest.param("a state dict", marks=TORCH)]


def contents(payload: str) -> bytes:
    """Return a file that runs code when it is unpickled."""
    content = io.BytesIO()
    objects = np.array([Hostile()], dtype=object)
    if payload == "a pickle":
        pickle.dump(Hostile(), content)
    elif payload == "an array":
        np.save(content, objects, allow_pickle=True)
    elif payload == "arrays":
        np.savez(content, allow_pickle=True, **dict.fromkeys(ARRAYS, objects))
    else:
        import torch

        torch.save({"weight": Hostile()}, content)
    return content.getvalue()


def load_weights(path: Path) -> None:
    """Load weights into a layer of torch."""
    from torch import nn

    from topwork_trainer.backbones import weights

    weights.load(nn.Linear(1, 1), path, name="it", unused=())


LOADERS: dict[str, Callable[[Path], object]] = {
    "a shard": lambda path: open_shard(path, sha256(path.read_bytes())),
    "an index of examples": lambda path: examples.from_bytes(path.read_bytes(), ("a",), 1),
    "a backbone": lambda path: open_session(path.read_bytes(), output="embedding"),
    "a head": lambda path: HeadLoader().load(path.read_bytes(), width=8, labels=2, unknown=False),
    "a photo": lambda path: preprocess(path.read_bytes(), PreprocessSpec(resize=8, crop=8)),
    "embeddings": read_vectors,
    "weights": load_weights,
    **{
        f"a document: {kind.__name__}": lambda path, kind=kind: from_json(  # type: ignore[misc]  # mypy cannot infer a lambda's default
            path.read_bytes(), kind, name="it"
        )
        for kind in (Manifest, BackboneInfo, Metrics, ServingState, Signatures)
    },
}


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Remove MARK after each test."""
    yield
    with suppress(FileNotFoundError):
        MARK.rmdir()


@pytest.mark.parametrize("payload", PAYLOADS)
def test_payload_runs_code_when_unpickled(payload: str) -> None:
    """Each payload works in a reader that unpickles, so the tests below can fail."""
    content = io.BytesIO(contents(payload))
    if payload == "a pickle":
        pickle.load(content)  # noqa: S301  # the test needs an unsafe reader
    elif payload == "a state dict":
        import torch

        torch.load(content, weights_only=False)
    else:
        loaded = np.load(content, allow_pickle=True)
        _ = loaded["seen"] if payload == "arrays" else loaded
    assert MARK.exists()


@pytest.mark.parametrize(
    "loader", [pytest.param(one, marks=TORCH if one == "weights" else ()) for one in LOADERS]
)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_loader_unpickles(loader: str, payload: str, tmp_path: Path) -> None:
    """Every loader refuses every payload with an expected error and runs no code."""
    path = tmp_path / "file"
    path.write_bytes(contents(payload))
    with pytest.raises(TopworkError) as caught:
        LOADERS[loader](path)
    assert isinstance(caught.value, Corrupt | ImageError | InvalidInput)
    assert not MARK.exists()


@TORCH
def test_checkpoint_with_a_valid_seal_runs_no_code(tmp_path: Path) -> None:
    """A forged checkpoint with a valid digest cannot run code in a fit."""
    from topwork_trainer.finetuning import checkpoints

    body = contents("a state dict")
    seal = hashlib.sha256(b"run" + body).digest()
    (tmp_path / "m.pt").write_bytes(seal + body)
    with suppress(pickle.UnpicklingError):
        checkpoints.load(tmp_path / "m.pt", "run")
    assert not MARK.exists()


FORBIDDEN = re.compile(
    r"\b(pickle|cPickle|dill|cloudpickle|joblib|marshal|shelve|allow_pickle|exec)\b"
    r"|\b(np|numpy|yaml|jit)\.load\("
)


def code() -> list[tuple[str, str]]:
    """Return the lines of both packages, without comments, each with its module's name."""
    roots = [Path(str(package.__file__)).parent for package in (topwork, topwork_trainer)]
    return [
        (path.name, line.partition("#")[0])
        for root in roots
        for path in sorted(root.rglob("*.py"))
        if "v1" not in path.parts
        for line in path.read_text().splitlines()
    ]


def test_no_module_uses_a_loader_that_unpickles() -> None:
    """No line uses such a loader; torch.load is limited to plain tensors."""
    assert [(name, line) for name, line in code() if FORBIDDEN.search(line)] == []
    loads = [line for _, line in code() if "torch.load(" in line]
    assert len(loads) == 2
    assert all("weights_only=True" in line for line in loads)
