"""Fine-tuning without one fold after the other: deterministic, and resumable after a crash."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from support.small_backbone import backbone, photos

from topwork.bundle.exemplars import FOLDS, Exemplars, make
from topwork.errors import InvalidInput
from topwork.inputs.image import preprocess
from topwork.inputs.image_source import ImageSource
from topwork_trainer.backbones import TorchBackbone
from topwork_trainer.backbones.export import EmbeddingModel, to_onnx
from topwork_trainer.backbones.pooled import Pooled
from topwork_trainer.finetuning import activations, checkpoints
from topwork_trainer.finetuning import finetune as finetuning
from topwork_trainer.finetuning.finetune import FoldTuner, Tuned, fold_tuner
from topwork_trainer.finetuning.settings import Diverged, FinetuneConfig, LinearHead
from topwork_trainer.finetuning.split import split

LABELS = ("amber", "blue", "crimson")
PHOTOS = photos(LABELS, 8)
CONFIG = FinetuneConfig(
    unfreeze="all", epochs=2, augmented_views=1, batch=8, rate=1e-2, head_rate=1e-2
)
FOLDS_OF_PHOTOS = np.arange(len(PHOTOS)) % FOLDS
STEPS = 3
"""Steps per epoch of the fold 0."""


def exemplars(sources: list[ImageSource]) -> Exemplars:
    """Return exemplars in the order of the photos: their digests ascend."""
    number = np.arange(len(sources), dtype=">u4")
    digests = np.zeros((len(sources), 32), dtype=np.uint8)
    digests[:, :4] = number.view(np.uint8).reshape(-1, 4)
    contents = np.stack([np.frombuffer(source.read()[-32:], np.uint8) for source in sources])
    return make(
        np.zeros((len(sources), 16), dtype=np.float32),
        digests,
        digests,
        [source.label for source in sources],
        contents=contents,
        names=[source.name for source in sources],
    )


def head(*, scale: float = 3.0) -> LinearHead:
    rng = np.random.default_rng(0)
    return LinearHead(
        weights=scale * rng.standard_normal((3, 16)).astype(np.float32),
        bias=np.zeros(3, dtype=np.float32),
    )


@contextmanager
def tuner(
    directory: Path,
    config: FinetuneConfig = CONFIG,
    *,
    sources: list[ImageSource] = PHOTOS,
    start: TorchBackbone | None = None,
    start_head: LinearHead | None = None,
    seed: int = 0,
) -> Iterator[FoldTuner]:
    with fold_tuner(
        start or backbone(),
        exemplars(sources),
        sources,
        FOLDS_OF_PHOTOS,
        [start_head or head()] * FOLDS,
        config,
        seed=seed,
        checkpoints=directory,
        on_image=lambda: None,
    ) as tuning:
        yield tuning


def first(
    directory: Path,
    config: FinetuneConfig = CONFIG,
    *,
    on_photos: Callable[[int], None] = lambda _: None,
    **more: object,
) -> Tuned:
    """Return the result of the first fold."""
    with (
        tuner(directory, config, **more) as tuning,  # type: ignore[arg-type] # passed on
        closing(tuning.results(on_photos)) as results,
    ):
        return next(results)


def numbers(tuned: Tuned) -> list[bytes]:
    """Return all numbers of a result, for exact comparison."""
    weights = [tuned.weights[name].numpy().tobytes() for name in sorted(tuned.weights)]
    return [tuned.embeddings.tobytes(), *weights]


@pytest.fixture(scope="module", autouse=True)
def _one_fold_at_a_time() -> Iterator[None]:
    """Train one fold at a time, so that tests know the steps that were done; trace only once."""
    known: dict[object, object] = {}

    def remember(call: Callable[..., object], key: Callable[..., object]) -> Callable[..., object]:
        def remembered(*args: object, **more: object) -> object:
            name = (call, key(*args))
            if name not in known:
                known[name] = call(*args, **more)
            return known[name]

        return remembered

    def weights(module: torch.nn.Module) -> str:
        return repr([(name, value.tolist()) for name, value in module.state_dict().items()])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "available_cores", lambda: 1)
        patch.setattr(
            finetuning,
            "split",
            remember(split, lambda whole, trained: (weights(whole.module), frozenset(trained))),
        )
        patch.setattr(
            activations, "to_onnx", remember(to_onnx, lambda stem, *_: (str(stem), weights(stem)))
        )
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Tuned]:
    """Return the results of an uninterrupted run."""
    with tuner(tmp_path_factory.mktemp("whole")) as tuning:
        return list(tuning.results(lambda _: None))


def test_each_fold_is_tuned_on_its_own(whole: list[Tuned]) -> None:
    """There is a result for each fold in order, with its own weights."""
    assert [tuned.fold for tuned in whole] == list(range(FOLDS))
    assert len({b"".join(numbers(tuned)) for tuned in whole}) == FOLDS


def test_no_result_depends_on_the_photos_of_its_fold(whole: list[Tuned], tmp_path: Path) -> None:
    """With other pictures of other labels in fold 0, tuning without it gives the same weights.

    Without any other fold, the weights differ.
    """
    changed = [
        dataclasses.replace(source, label=PHOTOS[-row].label, read=PHOTOS[-row].read)
        if FOLDS_OF_PHOTOS[row] == 0
        else source
        for row, source in enumerate(PHOTOS)
    ]
    with tuner(tmp_path, sources=changed) as tuning:
        again = list(tuning.results(lambda _: None))
    same = [numbers(a)[1:] == numbers(b)[1:] for a, b in zip(whole, again, strict=True)]
    assert same == [True, False, False, False, False]


def test_results_do_not_depend_on_the_number_of_cores(
    whole: list[Tuned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folds that train side by side give the same results bit for bit; torch's setting stays."""
    monkeypatch.setattr(finetuning, "available_cores", lambda: 3)
    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    with tuner(tmp_path) as tuning:
        again = list(tuning.results(lambda _: None))
    assert [numbers(tuned) for tuned in again] == [numbers(tuned) for tuned in whole]
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), generator)


def test_other_seed_gives_another_result(whole: list[Tuned], tmp_path: Path) -> None:
    """The seed decides order and views."""
    assert numbers(first(tmp_path, seed=1)) != numbers(whole[0])


@pytest.mark.parametrize("change", [{"label_smoothing": 0.2}, {"average_weights": False}])
def test_options_have_an_effect(
    whole: list[Tuned], tmp_path: Path, change: dict[str, float]
) -> None:
    """Label smoothing and averaging change the weights."""
    assert numbers(first(tmp_path, dataclasses.replace(CONFIG, **change))) != numbers(whole[0])  # type: ignore[arg-type] # of any field


@pytest.mark.parametrize("views", [1, 2])
def test_tuned_backbone_gives_the_embeddings(tmp_path: Path, views: int) -> None:
    """The backbone with the tuned weights embeds photos as in serving; norms keep statistics."""
    start = backbone(views=views)
    norms = {name: value.clone() for name, value in start.module.named_buffers()}
    with tuner(tmp_path, start=start) as tuning, closing(tuning.results(lambda _: None)) as results:
        tuned = next(results)
        result = tuning.tuned_backbone(tuned)
    pixels = np.stack([preprocess(photo.read(), start.spec) for photo in PHOTOS])
    with torch.inference_mode():
        embeddings = EmbeddingModel(result)(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(tuned.embeddings, embeddings, atol=5e-3, rtol=5e-3)
    assert all(torch.equal(value, norms[name]) for name, value in result.module.named_buffers())
    assert result.identity == f"small:1:tuned:{result.weights_sha256}"


def test_frozen_stages_do_not_change(tmp_path: Path) -> None:
    """With ``last:1`` only the last stage's weights are tuned."""
    tuned = first(tmp_path, dataclasses.replace(CONFIG, unfreeze="last:1"))
    before = backbone().module
    assert set(tuned.weights) == {
        f"features.{layer}.{part}" for layer in (4, 5) for part in ("weight", "bias")
    }
    assert not any(
        torch.equal(value, before.get_parameter(name)) for name, value in tuned.weights.items()
    )


def test_pooled_backbone_is_tuned(tmp_path: Path) -> None:
    """The gradient passes through the means of the lower stage and their lengths."""
    plain = backbone()
    module = Pooled(plain.module, ["features.4"], crop=16).eval()
    pooled = dataclasses.replace(plain, module=module, width=8 + 16)
    weights = np.random.default_rng(0).standard_normal((3, 24)).astype(np.float32)
    start = LinearHead(weights=weights, bias=np.zeros(3, dtype=np.float32))
    before = {name: value.clone() for name, value in module.named_parameters()}
    tuned = first(tmp_path, start=pooled, start_head=start)
    assert tuned.embeddings.shape[1] == 24
    assert tuned.weights.keys() == before.keys()
    assert not any(torch.equal(value, before[name]) for name, value in tuned.weights.items())


def test_tuning_lowers_the_loss_of_other_photos(tmp_path: Path) -> None:
    """From a random head, photos of a label come closer together than photos of others."""

    def contrast(embeddings: np.ndarray) -> float:
        rows = embeddings[FOLDS_OF_PHOTOS == 0]
        targets = exemplars(PHOTOS).targets[FOLDS_OF_PHOTOS == 0]
        unit = np.sqrt(np.abs(rows))
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        alike = targets[:, None] == targets
        similarity = unit @ unit.T
        return float(similarity[alike].mean() - similarity[~alike].mean())

    still = dataclasses.replace(CONFIG, rate=1e-9, epochs=1)
    tuned = dataclasses.replace(CONFIG, epochs=10)
    before, after = (
        contrast(first(tmp_path / str(config.epochs), config).embeddings)
        for config in (still, tuned)
    )
    assert after > before + 0.05


def test_progress_counts_photos_up_to_the_total(tmp_path: Path) -> None:
    """Progress reaches ``photos``, in steps of a batch."""
    seen: list[int] = []
    with tuner(tmp_path) as tuning:
        list(tuning.results(seen.append))
        assert seen[-1] == tuning.photos == 2 * (FOLDS - 1) * len(PHOTOS)
    assert seen[0] == 8
    assert seen == sorted(seen)


def test_closing_the_results_ends_the_training(tmp_path: Path) -> None:
    """After the first result no further fold is trained to its end."""
    first(tmp_path)
    assert (tmp_path / "fold-0.pt").exists()
    assert not (tmp_path / "fold-4.pt").exists()


@pytest.mark.parametrize(
    ("step", "write"), [(STEPS + 2, 0), (0, 3)], ids=["in an epoch", "in a write"]
)
def test_killed_run_resumes_to_the_same_result(
    whole: list[Tuned], tmp_path: Path, step: int, write: int
) -> None:
    """After kill -9 in an epoch or in a write, another run gives the same result bit for bit."""
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, __file__, str(tmp_path), str(step), str(write)]
    child = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False)
    assert child.returncode == -signal.SIGKILL
    seen: list[int] = []
    assert numbers(first(tmp_path, on_photos=seen.append)) == numbers(whole[0])
    epoch = int(np.sum(FOLDS_OF_PHOTOS != 0))
    assert seen[:2] == [epoch, epoch + 8]


def test_finished_fold_is_not_repeated(whole: list[Tuned], tmp_path: Path) -> None:
    """As long as the checkpoint exists, another run trains no step of the fold."""
    first(tmp_path)
    for file in tmp_path.glob("fold-[1-4].pt"):
        file.unlink()
    seen: list[int] = []
    assert numbers(first(tmp_path, on_photos=seen.append)) == numbers(whole[0])
    assert seen[0] == 2 * int(np.sum(FOLDS_OF_PHOTOS != 0))


def test_checkpoint_of_other_arguments_is_not_used(tmp_path: Path) -> None:
    """With another seed, photo, label, head or backbone training starts from the beginning."""
    once = dataclasses.replace(CONFIG, epochs=1)
    first(tmp_path, once)
    checkpoint = (tmp_path / "fold-0.pt").read_bytes()
    relabelled = [dataclasses.replace(PHOTOS[0], label=LABELS[1]), *PHOTOS[1:]]
    changed = [dataclasses.replace(PHOTOS[0], read=PHOTOS[5].read), *PHOTOS[1:]]
    other = backbone()
    other.module.get_parameter("features.0.bias").data += 1e-3
    run = functools.partial(first, tmp_path, once)
    for call in (
        functools.partial(run, seed=1),
        functools.partial(run, sources=relabelled),
        functools.partial(run, sources=changed),
        functools.partial(run, start_head=head(scale=2.0)),
        functools.partial(run, start=other),
    ):
        (tmp_path / "fold-0.pt").write_bytes(checkpoint)
        seen: list[int] = []
        call(on_photos=seen.append)
        assert seen[0] == 8


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_checkpoint_is_not_used(tmp_path: Path, damage: str) -> None:
    """A checkpoint that fails its checksum counts as missing."""
    file = tmp_path / "fold-0.pt"
    checkpoints.save(file, "run", {"epoch": 1})
    assert checkpoints.load(file, "run") == {"epoch": 1}
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes({"cut": content[:-50], "flipped": content, "empty": b""}[damage]))
    assert checkpoints.load(file, "run") is None


def test_divergence_raises_and_deletes_the_checkpoint(tmp_path: Path) -> None:
    """The error has epoch, step and learning rate; no checkpoint remains."""
    config = dataclasses.replace(CONFIG, rate=1e9, head_rate=1e9)
    with pytest.raises(Diverged, match=r"epoch 1, step \d of 3, at learning rate .*e\+.*: try"):
        first(tmp_path, config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("device", lambda path: first(path, dataclasses.replace(CONFIG, device="abacus"))),
        ("unfreeze", lambda path: first(path, dataclasses.replace(CONFIG, unfreeze="last:3"))),
        ("epochs", lambda _: dataclasses.replace(CONFIG, epochs=0)),
        ("rate", lambda _: dataclasses.replace(CONFIG, rate=float("nan"))),
        ("decay", lambda _: dataclasses.replace(CONFIG, decay=1.5)),
        ("label_smoothing", lambda _: dataclasses.replace(CONFIG, label_smoothing=-0.1)),
    ],
)
def test_invalid_arguments_are_refused(
    tmp_path: Path, field: str, call: Callable[[Path], object]
) -> None:
    """The error for invalid settings has the name of the field."""
    with pytest.raises(InvalidInput) as caught:
        call(tmp_path)
    assert caught.value.field == field


def _die(directory: Path, step: int, write: int) -> None:
    """Run, and kill this process at training step ``step`` or in the ``write``-th fsync."""
    fsync, steps, syncs = os.fsync, iter(range(1, 1000)), iter(range(1, 1000))

    def die_at(_: int) -> None:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def die_in(descriptor: int) -> None:
        if next(syncs) == write:
            os.ftruncate(descriptor, 1000)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", die_in)
        patch.setattr(finetuning, "available_cores", lambda: 1)
        first(directory, on_photos=die_at)


if __name__ == "__main__":
    _die(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
