"""Registry: serving revisions, hot reload, and the cache of heads."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from structlog.testing import capture_logs
from support import tiny
from support.pictures import picture, pictures

from topwork.bundle.draft import Draft
from topwork.bundle.manifest import BackboneInfo, Manifest
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, NotFound, NotReady, Unavailable
from topwork.limits import DEFAULT_LIMITS
from topwork.runtime.agreement import LEAST_AGREEMENT
from topwork.serving import registry as registry_module
from topwork.serving.backbones import LoadedBackbone
from topwork.serving.classifier import Classifier
from topwork.serving.classify_batch import ImageAnswer
from topwork.serving.encoders.encoder import Check, Encoded, Item, Result
from topwork.serving.encoders.threads import ThreadEncoder
from topwork.serving.registry import Registry
from topwork.telemetry import Telemetry

ALL = ("amber", "blue", "crimson", "green", "violet")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return the repository that tests copy."""
    return tiny.repository(tmp_path_factory.mktemp("made") / "repository")


@pytest.fixture
def colours(made: Repository, tmp_path: Path) -> Repository:
    """Return a copy: a repository with a small model ``colours``."""
    shutil.copytree(made.root, tmp_path / "repository")
    return Repository(tmp_path / "repository")


class ListeningEncoder(ThreadEncoder):
    """Encoder that keeps the results, and the digests of backbones that are loaded and unloaded."""

    def __init__(self) -> None:
        super().__init__(provider="cpu", cores=2, limits=DEFAULT_LIMITS)
        self.results: asyncio.Queue[Result] = asyncio.Queue()
        self.loaded: list[str] = []
        self.unloaded: list[str] = []

    async def load(self, info: BackboneInfo, model: Callable[[], bytes]) -> Check:
        """See Encoder."""
        check = await super().load(info, model)
        self.loaded.append(info.digest)
        return check

    def unload(self, digest: str) -> None:
        """See Encoder."""
        super().unload(digest)
        self.unloaded.append(digest)

    async def embed(self, backbone: LoadedBackbone) -> NDArray[np.float32]:
        """Return the embedding of a black image."""
        black = bytes(backbone.info.image_spec.crop**2 * 3)
        item = Item(id=1, backbone=backbone.info.digest, content=black, pixels=True)
        self.submit(item, present=1)
        result = await asyncio.wait_for(self.results.get(), 60)
        assert isinstance(result, Encoded), result
        return np.frombuffer(result.embedding, dtype=np.float32)


@asynccontextmanager
async def started(
    repository: Repository,
    *,
    encoder: ListeningEncoder | None = None,
    head_bytes: int = registry_module.HEAD_BYTES,
) -> AsyncIterator[Registry]:
    """Yield a registry that watches ``repository``, with a started encoder."""
    encoder = encoder or ListeningEncoder()
    registry = Registry(repository, encoder, telemetry=Telemetry(), head_bytes=head_bytes)
    await encoder.start(encoder.results.put_nowait, lambda: None)
    try:
        await registry.start()
        yield registry
    finally:
        await encoder.aclose()
        await registry.aclose()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for an action of the watching registry."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        await asyncio.sleep(0.005)


def publish_again(repository: Repository, *, serve: bool = True, head: bytes | None = None) -> int:
    """Publish a copy of revision 1, optionally with another head, and return its number."""
    first = repository.manifest("colours", 1)
    if head is not None:  # the heads of these tests have no output 'unknown'
        first = replace(first, chosen=replace(first.chosen, unknown_threshold=None))
    made = tiny.publish_copy(repository, first, head=head)
    if serve:
        repository.set_serving("colours", made.revision, why="test")
    return made.revision


@pytest.mark.slow
def test_hot_reload_never_mixes_revisions(colours: Repository) -> None:
    """During hot reloads, labels and scores of an answer belong to the revision that it names.

    The second revision has one more label; both know the picture, so a head of one revision with
    the labels of the other would predict the wrong label.
    """
    exemplars = tiny.embed_pictures({label: pictures(label, 20) for label in ALL})
    tiny.publish(colours, "colours", exemplars)
    labels = {1: {*ALL} - {"violet"}, 2: {*ALL}}
    answers: list[tuple[int, set[str], str]] = []

    async def scenario() -> None:
        encoder = ThreadEncoder(provider="cpu", cores=2, limits=DEFAULT_LIMITS)
        registry = Registry(colours, encoder, telemetry=Telemetry())
        classifier = Classifier(
            registry, encoder, limits=DEFAULT_LIMITS, cores=2, queue_limit=64, telemetry=Telemetry()
        )
        await classifier.start()
        try:
            await registry.start()
            swapping = True

            async def ask() -> None:
                while swapping:
                    found = await classifier.classify("colours", [picture("green", 50)] * 2)
                    for result in found.results:
                        assert isinstance(result, ImageAnswer)
                        labels_ = [prediction.label for prediction in result.predictions]
                        answers.append((found.revision, {*labels_}, labels_[0]))

            callers = [asyncio.create_task(ask()) for _ in range(4)]
            for turn in range(30):
                colours.set_serving("colours", 1 + turn % 2, why="test")
                await registry.refresh()
                answered = len(answers)
                await until(
                    lambda before=answered: (  # type: ignore[misc]  # mypy cannot infer a lambda's default
                        len(answers) > before or any(caller.done() for caller in callers)
                    )
                )
            swapping = False
            await asyncio.gather(*callers)
        finally:
            await classifier.aclose()
            await registry.aclose()

    asyncio.run(scenario())
    assert {revision for revision, _, _ in answers} == {1, 2}
    assert all(found == labels[revision] for revision, found, _ in answers)
    assert {best for _, _, best in answers} == {"green"}


@pytest.mark.slow
def test_new_revision_is_hot_reloaded(colours: Repository) -> None:
    """The registry notices a replaced serving.json without a call to refresh."""

    async def scenario() -> None:
        async with started(colours) as registry:
            number = publish_again(colours)
            await until(lambda: registry.serving("colours").revision == number)
            colours.set_serving("colours", 1, why="test")
            await until(lambda: registry.serving("colours").revision == 1)

    asyncio.run(scenario())


@pytest.mark.slow
def test_new_model_is_loaded(colours: Repository) -> None:
    """A model that is published while the server runs serves."""

    async def scenario() -> list[str]:
        async with started(colours) as registry:
            exemplars = tiny.embed_pictures({label: pictures(label, 5) for label in ALL[:2]})
            tiny.publish(colours, "another", exemplars)
            await until(lambda: len(registry.models()) == 2)
            return registry.models()

    assert asyncio.run(scenario()) == ["another", "colours"]


def tamper_head(folder: Path) -> None:
    """Change a byte of head.onnx."""
    path = folder / "head.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def lose_metrics(folder: Path) -> None:
    """Delete metrics.json."""
    (folder / "metrics.json").unlink()


def cut_manifest(folder: Path) -> None:
    """Truncate manifest.json."""
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.slow
@pytest.mark.parametrize("damage", [tamper_head, lose_metrics, cut_manifest])
def test_damaged_revision_leaves_the_old_revision_serving(
    colours: Repository, damage: Callable[[Path], None]
) -> None:
    """A damaged revision is logged; the old revision serves until the next intact revision."""
    number = publish_again(colours, serve=False)
    damage(colours.root / "models" / "colours" / str(number))
    (colours.root / "models/colours/serving.json.new").write_text(f'{{"revision": {number}}}')

    async def scenario() -> list[Any]:
        async with started(colours) as registry:
            with capture_logs() as logs:
                serving = colours.root / "models/colours/serving.json"
                serving.with_suffix(".json.new").replace(serving)
                await until(lambda: any(line["log_level"] == "error" for line in logs))
            assert registry.serving("colours").revision == 1
            healthy = publish_again(colours)
            await until(lambda: registry.serving("colours").revision == healthy)
            return logs

    (line,) = [line for line in asyncio.run(scenario()) if line["log_level"] == "error"]
    assert (line["event"], line["model"]) == ("revision cannot be loaded", "colours")


def test_failed_read_is_retried(colours: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """A revision that is temporarily unreadable is loaded by a later poll."""

    async def scenario() -> None:
        async with started(colours) as registry:
            read = colours.head
            failed = asyncio.Event()
            loop = asyncio.get_running_loop()

            def unsteady(manifest: Manifest) -> bytes:
                if not failed.is_set():
                    loop.call_soon_threadsafe(failed.set)
                    raise OSError(116, "Stale file handle")
                return read(manifest)

            number = publish_again(colours, serve=False)
            monkeypatch.setattr(colours, "head", unsteady)
            colours.set_serving("colours", number, why="test")
            await asyncio.wait_for(failed.wait(), 60)
            for _ in range(3):
                await registry.refresh()
            assert registry.serving("colours").revision == number

    asyncio.run(scenario())


def a_head_of_another_width(repository: Repository) -> None:
    """Serve a revision whose head does not fit its backbone."""
    zeros = np.zeros((4, 7), dtype=np.float32)
    publish_again(repository, head=tiny.linear_head(zeros, zeros[:, 0]))


def a_copied_folder(repository: Repository) -> None:
    """Copy a model as file managers do."""
    models = repository.root / "models"
    shutil.copytree(models / "colours", models / "colours (copy)")


@pytest.mark.parametrize("trouble", [a_head_of_another_width, a_copied_folder])
def test_invalid_folder_does_not_stop_the_watcher(
    colours: Repository, monkeypatch: pytest.MonkeyPatch, trouble: Callable[[Repository], None]
) -> None:
    """Later revisions are noticed despite an invalid folder."""
    monkeypatch.setattr(registry_module, "POLL_SECONDS", 0.001)

    async def scenario() -> None:
        async with started(colours) as registry:
            watcher = registry._watcher
            assert watcher is not None
            trouble(colours)
            polls = Mock(wraps=registry._read_stamps)
            monkeypatch.setattr(registry, "_read_stamps", polls)
            # When a second poll begins the first has ended.
            await until(lambda: polls.call_count > 1 or watcher.done())
            healthy = publish_again(colours)
            await until(lambda: registry.serving("colours").revision == healthy or watcher.done())
            assert not watcher.done()

    asyncio.run(scenario())


@pytest.mark.parametrize("trouble", [a_head_of_another_width, a_copied_folder])
def test_start_loads_models_despite_an_invalid_folder(
    colours: Repository, trouble: Callable[[Repository], None]
) -> None:
    """The registry starts with all models that can be loaded."""
    exemplars = tiny.embed_pictures({label: pictures(label, 5) for label in ALL[:2]})
    tiny.publish(colours, "another", exemplars)
    trouble(colours)

    async def scenario() -> list[str]:
        async with started(colours) as registry:
            return registry.models()

    assert "another" in asyncio.run(scenario())


def test_old_revision_is_loaded_on_demand(colours: Repository) -> None:
    """A revision that does not serve is loaded on request, and cached."""
    number = publish_again(colours)

    async def scenario() -> None:
        async with started(colours) as registry:
            assert (await registry.snapshot("colours", 0)).manifest.revision == number
            assert await registry.snapshot("colours", number) is await registry.snapshot("colours")
            old = await registry.snapshot("colours", 1)
            assert old.manifest.revision == 1
            assert await registry.snapshot("colours", 1) is old

    asyncio.run(scenario())


@pytest.mark.parametrize(("model", "revision"), [("colours", 2), ("another", 0), ("another", 1)])
def test_unknown_model_or_revision_is_not_found(
    colours: Repository, model: str, revision: int
) -> None:
    """A model or revision that was never published is NotFound."""

    async def scenario() -> None:
        async with started(colours) as registry:
            await registry.snapshot(model, revision)

    with pytest.raises(NotFound):
        asyncio.run(scenario())


def test_damaged_old_revision_is_corrupt(colours: Repository) -> None:
    """A request for a revision whose head was changed is Corrupt."""
    publish_again(colours)
    tamper_head(colours.root / "models/colours/1")

    async def scenario() -> None:
        async with started(colours) as registry:
            await registry.snapshot("colours", 1)

    with pytest.raises(Corrupt, match="was changed"):
        asyncio.run(scenario())


def test_models_share_their_backbone(colours: Repository) -> None:
    """Models and revisions with the same backbone share it; the encoder loads it once."""
    exemplars = tiny.embed_pictures({label: pictures(label, 5) for label in ALL[:2]})
    tiny.publish(colours, "another", exemplars)
    publish_again(colours)
    digest = colours.manifest("colours", 1).backbone

    async def scenario() -> None:
        encoder = ListeningEncoder()
        async with started(colours, encoder=encoder) as registry:
            snapshots = [
                await registry.snapshot(model, revision)
                for model, revision in (("colours", 1), ("colours", 2), ("another", 1))
            ]
            assert len({id(snapshot.backbone) for snapshot in snapshots}) == 1
            assert len({id(snapshot.head) for snapshot in snapshots}) == 3
            assert encoder.loaded == [digest]

    asyncio.run(scenario())


def publish_with_another_backbone(repository: Repository) -> str:
    """Publish and serve a revision of ``colours`` with a new backbone, and return its digest."""
    model = onnx.load_from_string(tiny.backbone_model())
    model.doc_string = "another"
    backbone = model.SerializeToString(deterministic=True)
    exemplars = tiny.embed_pictures({label: pictures(label, 5) for label in ALL[:2]})
    return tiny.publish(repository, "colours", exemplars, backbone=backbone).backbone


def test_snapshot_remains_usable_after_a_hot_reload(colours: Repository) -> None:
    """A snapshot that is in use works after the next revision, of another backbone, is loaded."""

    async def scenario() -> tuple[int, ...]:
        encoder = ListeningEncoder()
        async with started(colours, encoder=encoder) as registry:
            held = await registry.snapshot("colours")
            digest = publish_with_another_backbone(colours)
            await registry.refresh()
            assert registry.serving("colours").backbone == digest != held.backbone.info.digest
            gc.collect()
            embedding = await encoder.embed(held.backbone)
            assert encoder.unloaded == []
            return held.head.run(embedding[None])[0].shape

    assert asyncio.run(scenario()) == (1, 4)


def test_backbone_is_unloaded_after_its_last_snapshot(colours: Repository) -> None:
    """When the last snapshot of a backbone is dropped, the encoder frees it; others stay."""

    async def scenario() -> None:
        encoder = ListeningEncoder()
        async with started(colours, encoder=encoder) as registry:
            held = await registry.snapshot("colours")
            first = held.backbone.info.digest
            second = publish_with_another_backbone(colours)
            await registry.refresh()
            assert encoder.loaded == [first, second]
            assert encoder.unloaded == []
            del held
            await until(lambda: gc.collect() >= 0 and encoder.unloaded == [first])
            await encoder.embed((await registry.snapshot("colours")).backbone)
            await encoder.embed((await registry.snapshot("colours", 1)).backbone)
            assert encoder.loaded == [first, second, first]

    asyncio.run(scenario())


# The check of backbones


@pytest.fixture
def saturating(tmp_path: Path) -> Repository:
    """Return a repository whose model has a backbone that is off, with its twin."""
    return tiny.saturating_repository(tmp_path / "saturating")


def off_lines(logs: list[Any]) -> list[Any]:
    """Return the warnings about backbones that are off."""
    return [line for line in logs if line["event"] == "backbone is off"]


def agreements(telemetry: Telemetry) -> dict[tuple[str, ...], float]:
    """Return the metric of agreements by its labels."""
    (metric,) = telemetry.agreement.collect()
    return {
        tuple(sample.labels[name] for name in ("backbone", "digest", "precision")): sample.value
        for sample in metric.samples
    }


def test_twin_serves_instead_of_a_backbone_that_is_off(saturating: Repository) -> None:
    """The twin is loaded once for all models, there is one warning, and the metric says so."""
    first = saturating.manifest("colours", 1)
    publish_copies(saturating, 3)

    async def scenario() -> None:
        encoder = ListeningEncoder()
        async with started(saturating, encoder=encoder) as registry:
            twin = saturating.backbone(first).twin
            assert encoder.loaded == [first.backbone, twin]
            assert encoder.unloaded == [first.backbone]
            loaded = registry.backbone("colours")
            assert (loaded.info.digest, loaded.info.precision) == (twin, "fp32")
            assert loaded.agreement is not None
            assert 0 < loaded.agreement < LEAST_AGREEMENT
            assert (await registry.snapshot("colours-1")).backbone is loaded
            labels = ("tiny", first.backbone[:12], "fp32")
            assert agreements(registry._telemetry) == {labels: loaded.agreement}

    with capture_logs() as logs:
        asyncio.run(scenario())
    (line,) = off_lines(logs)
    assert line["log_level"] == "warning"
    assert (line["name"], line["used"]) == ("tiny", "fp32")
    assert line["provider"] == "CPUExecutionProvider"


@pytest.mark.parametrize("damage", ["missing", "changed", "no graph", "none"])
def test_backbone_that_is_off_serves_without_a_usable_twin(
    saturating: Repository, damage: str
) -> None:
    """A warning names the reason; serving is better than not to serve."""
    manifest = saturating.manifest("colours", 1)
    twin = saturating.backbone(manifest).twin
    assert twin is not None
    if damage == "none":
        model = tiny.saturating_backbone_model() + b"\x32\x00"  # an empty doc_string
        info = replace(tiny.quantised_info(model), twin=None)
        exemplars = tiny.embed_pictures({label: pictures(label, 5) for label in ALL[:2]})
        manifest = tiny.publish(saturating, "colours", exemplars, backbone=model, info=info)
    elif damage == "no graph":
        model = tiny.saturating_backbone_model() + b"\x32\x00"
        other = saturating.put_backbone(b"no graph", tiny.backbone_info(b"no graph")).digest
        info = replace(tiny.quantised_info(model), twin=other)
        exemplars = tiny.embed_pictures({label: pictures(label, 5) for label in ALL[:2]})
        manifest = tiny.publish(saturating, "colours", exemplars, backbone=model, info=info)
    elif damage == "missing":
        shutil.rmtree(saturating.root / saturating.key("backbones", twin))
    else:
        ((saturating.root / saturating.key("backbones", twin)) / "backbone.onnx").write_bytes(
            b"changed"
        )

    async def scenario() -> None:
        encoder = ListeningEncoder()
        async with started(saturating, encoder=encoder) as registry:
            loaded = registry.backbone("colours")
            assert (loaded.info.digest, loaded.info.precision) == (manifest.backbone, "int8")
            assert loaded.agreement is not None
            assert loaded.agreement < LEAST_AGREEMENT
            assert encoder.loaded == [manifest.backbone]
            assert encoder.unloaded == []
            await encoder.embed(loaded)

    with capture_logs() as logs:
        asyncio.run(scenario())
    (line,) = off_lines(logs)
    assert line["used"] == "int8"
    assert bool(line.get("twin_error")) is (damage != "none")


def test_failed_read_of_the_twin_is_retried(
    saturating: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that is unavailable for a moment does not decide what serves; nothing leaks."""
    manifest = saturating.manifest("colours", 1)
    twin = saturating.backbone(manifest).twin
    read, failures = Repository.backbone_model, [OSError("no disk"), OSError("no disk")]

    def failing(repository: Repository, digest: str) -> bytes:
        if digest == twin and failures:
            raise failures.pop()
        return read(repository, digest)

    monkeypatch.setattr(Repository, "backbone_model", failing)

    async def scenario() -> None:
        encoder = ListeningEncoder()
        async with started(saturating, encoder=encoder) as registry:
            await until(lambda: registry.models() == ["colours"])
            assert registry.backbone("colours").info.digest == twin
            assert encoder.loaded == [manifest.backbone] * 3 + [twin]
            assert encoder.unloaded == [manifest.backbone] * 3

    with capture_logs():
        asyncio.run(scenario())


def test_hot_reload_ends_the_twin_and_its_metric(saturating: Repository) -> None:
    """A revision of a backbone that agrees replaces it, and the metric has only that one."""
    model = tiny.backbone_model()
    other = model + b"\x32\x00"
    info = replace(tiny.quantised_info(other), precision="fp32", twin=None)
    exemplars = tiny.embed_pictures({label: pictures(label, 5) for label in ALL[:2]})

    async def scenario() -> None:
        encoder = ListeningEncoder()
        async with started(saturating, encoder=encoder) as registry:
            twin = registry.backbone("colours").info.digest
            made = tiny.publish(saturating, "colours", exemplars, backbone=other, info=info)
            await registry.refresh()
            assert registry.backbone("colours").agreement == 1.0
            await until(lambda: gc.collect() >= 0 and twin in encoder.unloaded)
            labels = ("tiny", made.backbone[:12], "fp32")
            assert agreements(registry._telemetry) == {labels: 1.0}
            assert (await registry.snapshot("colours", 1)).backbone.info.digest == twin

    with capture_logs():
        asyncio.run(scenario())


def test_backbone_of_an_earlier_release_is_not_checked(colours: Repository) -> None:
    """It serves without a warning, and has no agreement and no metric."""

    async def scenario() -> None:
        async with started(colours) as registry:
            assert registry.backbone("colours").agreement is None
            assert agreements(registry._telemetry) == {}

    with capture_logs() as logs:
        asyncio.run(scenario())
    assert off_lines(logs) == []


def publish_copies(repository: Repository, count: int) -> list[str]:
    """Publish copies of ``colours`` as other models, and return their names."""
    first = repository.manifest("colours", 1)
    names = [f"colours-{number}" for number in range(count)]
    for name in names:
        made = tiny.publish_copy(repository, first, model=name)
        repository.set_serving(name, made.revision, why="test")
    return names


def test_heads_are_loaded_on_demand(colours: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry starts with WARM_HEADS heads and loads another head at its first request."""
    monkeypatch.setattr(registry_module, "WARM_HEADS", 3)
    names = publish_copies(colours, 8)

    async def scenario() -> tuple[int, int]:
        async with started(colours) as registry:
            assert registry.models() == ["colours", *names]
            before = registry.heads_in_memory()
            assert (await registry.snapshot(names[-1])).manifest.model == names[-1]
            return before, registry.heads_in_memory()

    assert asyncio.run(scenario()) == (3, 4)


def test_head_cache_is_bounded(colours: Repository) -> None:
    """The least recently used heads are evicted; an evicted head is loaded again on request."""
    names = publish_copies(colours, 8)

    async def scenario() -> int:
        async with started(colours) as registry:
            size = (await registry.snapshot("colours")).head.size
        async with started(colours, head_bytes=3 * size) as registry:
            held = await registry.snapshot(names[0])
            for name in names:
                await registry.snapshot(name)
            assert await registry.snapshot(names[0]) is not held
            embeddings = np.ones((2, tiny.WIDTH), dtype=np.float32)
            reloaded = await registry.snapshot(names[0])
            np.testing.assert_array_equal(
                held.head.run(embeddings)[0], reloaded.head.run(embeddings)[0]
            )
            return registry.heads_in_memory()

    assert asyncio.run(scenario()) == 3


def test_damaged_head_fails_requests_of_its_model_only(colours: Repository) -> None:
    """A model whose head was changed before the start is Corrupt; other models answer."""
    (name,) = publish_copies(colours, 1)
    tamper_head(colours.root / "models/colours/1")

    async def scenario() -> str:
        async with started(colours) as registry:
            for _ in range(2):
                with pytest.raises(Corrupt, match="was changed"):
                    await registry.snapshot("colours")
            return (await registry.snapshot(name)).manifest.model

    assert asyncio.run(scenario()) == name


def test_unreadable_head_is_unavailable(
    colours: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a head cannot be read, its requests are Unavailable; later they are answered."""
    monkeypatch.setattr(registry_module, "WARM_HEADS", 0)

    def away(_: Manifest) -> bytes:
        raise OSError(116, "Stale file handle")

    async def scenario() -> int:
        async with started(colours) as registry:
            with monkeypatch.context() as patch:
                patch.setattr(colours, "head", away)
                with pytest.raises(Unavailable, match="Stale file handle"):
                    await registry.snapshot("colours")
            return (await registry.snapshot("colours")).manifest.revision

    assert asyncio.run(scenario()) == 1


@pytest.mark.slow
def test_loads_of_different_models_are_concurrent(
    colours: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a revision of one model loads slowly, other models answer, load and hot-reload."""
    names = publish_copies(colours, 3)
    monkeypatch.setattr(registry_module, "WARM_HEADS", 0)
    read, loading, requested = colours.head, threading.Event(), threading.Event()

    def slow(manifest: Manifest) -> bytes:
        if (manifest.model, manifest.revision) == ("colours", 2):
            requested.set()
            assert loading.wait(60), "the test forgot to set the event"
        return read(manifest)

    monkeypatch.setattr(colours, "head", slow)

    async def scenario() -> None:
        async with started(colours) as registry:
            publish_again(colours)
            await until(requested.is_set)
            assert (await registry.snapshot("colours")).manifest.revision == 1
            for name in names:
                await registry.snapshot(name)
            made = tiny.publish_copy(colours, colours.manifest(names[0], 1))
            colours.set_serving(names[0], made.revision, why="test")
            await registry.refresh(names[0])
            assert registry.serving(names[0]).revision == made.revision
            assert registry.serving("colours").revision == 1
            loading.set()
            await registry.refresh()
            assert registry.serving("colours").revision == 2

    try:
        asyncio.run(scenario())
    finally:
        loading.set()


def test_removed_model_is_not_found(colours: Repository) -> None:
    """All revisions of a model whose directory was removed are NotFound; other models stay."""
    (name,) = publish_copies(colours, 1)
    publish_again(colours)

    async def scenario() -> list[str]:
        async with started(colours) as registry:
            await registry.snapshot("colours", 1)
            shutil.rmtree(colours.root / "models/colours")
            await until(lambda: registry.models() == [name])
            for revision in (0, 1, 2):
                with pytest.raises(NotFound):
                    await registry.snapshot("colours", revision)
            return registry.models()

    assert asyncio.run(scenario()) == [name]


def test_recreated_model_replaces_the_removed_model(colours: Repository) -> None:
    """A model created again with the same revision number answers instead of the removed one."""
    folder = colours.root / "models/colours"

    async def scenario() -> tuple[str, ...]:
        async with started(colours) as registry:
            old = await registry.snapshot("colours", 1)
            folder.rename(colours.root / "away")
            tiny.publish(
                colours,
                "colours",
                tiny.embed_pictures({label: pictures(label, 5) for label in ALL[:2]}),
            )
            await registry.refresh()
            new = await registry.snapshot("colours", 1)
            assert len(old.manifest.labels) == 4
            return new.manifest.labels

    assert asyncio.run(scenario()) == ALL[:2]


def test_models_serve_while_the_repository_is_missing(colours: Repository) -> None:
    """When the directory of models is missing, models in memory keep serving."""
    models = colours.root / "models"

    async def scenario() -> None:
        async with started(colours) as registry:
            models.rename(colours.root / "away")
            with pytest.raises(FileNotFoundError):
                await registry.refresh()
            assert (await registry.snapshot("colours")).manifest.revision == 1
            (colours.root / "away").rename(models)
            number = publish_again(colours)
            await until(lambda: registry.serving("colours").revision == number)

    asyncio.run(scenario())


def test_start_on_an_empty_repository(tmp_path: Path) -> None:
    """A registry starts on an empty directory and loads the first model that is published."""
    empty = Repository(tmp_path / "new")

    async def scenario() -> list[str]:
        async with started(empty) as registry:
            assert registry.models() == []
            tiny.repository(tmp_path / "new")
            await until(lambda: registry.models() != [])
            return registry.models()

    assert asyncio.run(scenario()) == ["colours"]


def test_poll_interval_grows_with_the_cost_of_polling(
    colours: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interval grows with the cost of a poll, up to a limit."""
    pauses = []
    for share in (1.0, 1e-9):
        monkeypatch.setattr(registry_module, "POLL_SHARE", share)

        async def scenario() -> None:
            async with started(colours) as registry:
                pauses.append(registry._pause)

        asyncio.run(scenario())
    assert pauses == [registry_module.POLL_SECONDS, registry_module.LONGEST_POLL_SECONDS]


def head_that_predicts(revision: int) -> bytes:
    """Return a head that predicts label ``revision`` modulo 4 for embeddings of ones."""
    weights = np.zeros((4, tiny.WIDTH), dtype=np.float32)
    weights[revision % 4] = 1
    return tiny.linear_head(weights, np.zeros(4, dtype=np.float32))


Action = Literal["publish", "roll back", "ask", "ask for the first", "refresh", "yield"]


@pytest.fixture(scope="module")
def shared_repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository whose heads predict their revision, from the second revision on."""
    repository = tiny.repository(tmp_path_factory.mktemp("actions") / "repository")
    publish_again(repository, head=head_that_predicts(2))
    return repository


@pytest.mark.slow
@settings(max_examples=30)
@given(
    actions=st.lists(st.sampled_from(get_args(Action)), min_size=5, max_size=40),
    small=st.booleans(),
)
def test_snapshot_belongs_to_one_revision(
    shared_repository: Repository, actions: list[Action], *, small: bool
) -> None:
    """Head and manifest are of one revision, in any order of publications and requests."""
    repository = shared_repository
    repository.set_serving("colours", 2, why="test")
    inputs = np.ones((1, tiny.WIDTH), dtype=np.float32)
    newest = repository.revisions("colours")[-1]

    async def ask(registry: Registry, revision: int) -> None:
        snapshot = await registry.snapshot("colours", revision)
        assert revision in {0, snapshot.manifest.revision}
        probabilities, _ = snapshot.head.run(inputs)
        assert probabilities.argmax() == snapshot.manifest.revision % 4

    async def scenario() -> None:
        nonlocal newest
        tasks = []
        async with started(repository, head_bytes=1 if small else 2**20) as registry:
            for action in actions:
                match action:
                    case "publish":
                        newest = publish_again(repository, head=head_that_predicts(newest + 1))
                    case "roll back":
                        repository.set_serving("colours", 2, why="test")
                    case "ask":
                        tasks.append(asyncio.create_task(ask(registry, 0)))
                    case "ask for the first":
                        tasks.append(asyncio.create_task(ask(registry, 2)))
                    case "refresh":
                        tasks.append(asyncio.create_task(registry.refresh()))
                    case "yield":
                        await asyncio.sleep(0.001)
            await asyncio.gather(*tasks)
            await registry.refresh()
            assert registry.serving("colours").revision == repository.serving("colours")
            await ask(registry, 0)

    asyncio.run(scenario())


@pytest.mark.slow
def test_hot_reloads_do_not_leak_memory(colours: Repository) -> None:
    """After hundreds of hot reloads under load, one head is in memory and memory did not grow."""
    for revision in range(4):
        publish_again(colours, head=head_that_predicts(revision))
    ended = subprocess.run(
        [sys.executable, "-m", "support.swapping", str(colours.root)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["heads_in_memory"] == 1
    assert found["heads"] <= 2  # a finished task may still refer to the last answer
    assert found["growth"] < 4_000_000


def test_draft_is_known_until_it_serves(colours: Repository) -> None:
    """A draft is listed and does not serve; it is replaced by its first revision, and deleted."""
    manifest = colours.manifest("colours", 1)
    draft = Draft(
        model="new",
        backbone=manifest.backbone,
        backbone_info=manifest.backbone_info,
        seed=0,
        recipe=manifest.recipe,
        created=manifest.created,
    )

    async def run() -> None:
        async with started(colours) as registry:
            colours.new_model(draft, most=9)
            await registry.refresh("new")
            assert (registry.models(), registry.drafts()) == (["colours"], ["new"])
            assert registry.current("new") == draft
            with pytest.raises(NotReady, match="2 more are needed"):
                await registry.snapshot("new")
            tiny.publish_copy(colours, manifest, model="new")
            colours.set_serving("new", 1, why="add_class", parent=0)
            await registry.refresh("new")
            assert (registry.models(), registry.drafts()) == (["colours", "new"], [])
            assert (await registry.snapshot("new")).manifest.model == "new"
            colours.delete_model("new")
            await registry.refresh("new")
            with pytest.raises(NotFound):
                registry.current("new")
            colours.undelete_model("new", most=9)
            await registry.refresh()
            assert registry.serving("new").revision == 1
            assert registry.unusable() == []

    asyncio.run(run())
