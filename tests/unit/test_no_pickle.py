"""Nothing that Topwork loads can run code: no pickle, in any of its guises."""

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
from topwork.bundle import shards
from topwork.bundle.documents import from_json
from topwork.bundle.files import sha256
from topwork.bundle.manifest import BackboneInfo, Manifest
from topwork.bundle.metrics import Metrics
from topwork.bundle.serving import ServingState
from topwork.bundle.shards import open_shard
from topwork.bundle.signing.signatures import Signatures
from topwork.errors import Corrupt, ImageError, InvalidInput, TopworkError
from topwork.inputs.image import preprocess
from topwork.inputs.preprocess import PreprocessSpec
from topwork.runtime.backend import open_session
from topwork.serving.head import HeadLoader

ARRAYS = [*shards._DTYPES]
MARK = Path(tempfile.gettempdir(), f"topwork-unpickled-{os.getpid()}")


class Hostile:
    """Makes the directory MARK when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str, int, bool]]:
        return os.makedirs, (str(MARK), 0o700, True)


# Not at the top of this file, since torch takes seconds to import.
TORCH = pytest.mark.slow
PAYLOADS = ["a pickle", "an array", "arrays", pytest.param("a state dict", marks=TORCH)]


def contents(payload: str) -> bytes:
    """Return a file that runs code in whoever unpickles it."""
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


def fill(path: Path) -> None:
    """Fill a layer of torch."""
    from torch import nn

    from topwork_trainer.backbones import weights

    weights.fill(nn.Linear(1, 1), path, name="it", unused=())


LOADERS: dict[str, Callable[[Path], object]] = {
    "a shard": lambda path: open_shard(path, sha256(path.read_bytes())),
    "a backbone": lambda path: open_session(path.read_bytes(), output="embedding"),
    "a head": lambda path: HeadLoader().load(path.read_bytes(), width=8, labels=2, unknown=False),
    "a photo": lambda path: preprocess(path.read_bytes(), PreprocessSpec(resize=8, crop=8)),
    "weights": fill,
    **{
        f"a document: {kind.__name__}": lambda path, kind=kind: from_json(  # type: ignore[misc]  # mypy cannot infer a lambda's default
            path.read_bytes(), kind, name="it"
        )
        for kind in (Manifest, BackboneInfo, Metrics, ServingState, Signatures)
    },
}


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Forget what ran before, and leave nothing."""
    yield
    with suppress(FileNotFoundError):
        MARK.rmdir()


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_payloads_are_live(payload: str) -> None:
    """Each runs its code in a reader that unpickles: so what does not run below was refused."""
    content = io.BytesIO(contents(payload))
    if payload == "a pickle":
        pickle.load(content)  # noqa: S301  # that is the point
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
    """Every loader refuses every payload with an error of Topwork's own, and runs nothing."""
    path = tmp_path / "file"
    path.write_bytes(contents(payload))
    with pytest.raises(TopworkError) as caught:
        LOADERS[loader](path)
    assert isinstance(caught.value, Corrupt | ImageError | InvalidInput)
    assert not MARK.exists()


@TORCH
def test_a_checkpoint_with_a_right_seal_runs_nothing(tmp_path: Path) -> None:
    """Even who knows how a checkpoint is sealed cannot run code in a fit."""
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
    """Return each line of the packages, comments left out, with its module's name."""
    roots = [Path(str(one.__file__)).parent for one in (topwork, topwork_trainer)]
    return [
        (path.name, line.partition("#")[0])
        for root in roots
        for path in sorted(root.rglob("*.py"))
        if "v1" not in path.parts
        for line in path.read_text().splitlines()
    ]


def test_no_module_has_a_loader_that_unpickles() -> None:
    """No line names one but those that say so; torch's loads plain tensors only."""
    assert [one for one in code() if FORBIDDEN.search(one[1])] == []
    loads = [line for _, line in code() if "torch.load(" in line]
    assert len(loads) == 2
    assert all("weights_only=True" in line for line in loads)
