"""Which revision answers, and how the next one takes its place."""

from __future__ import annotations

import asyncio
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
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from support import tiny
from support.pictures import picture, pictures

from topwork.bundle.manifest import Manifest
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, NotFound, Unavailable
from topwork.limits import DEFAULT_LIMITS
from topwork.serving import registry as registry_module
from topwork.serving.classifier import Classifier
from topwork.serving.classify_batch import ImageAnswer
from topwork.serving.encoders.backbone import Embedded
from topwork.serving.encoders.cpu_backbone import CpuBackbone
from topwork.serving.registry import Registry
from topwork.telemetry import Telemetry

TESTS = Path(__file__).parents[2]
ALL = ("amber", "blue", "crimson", "green", "violet")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository to copy from."""
    return tiny.repository(tmp_path_factory.mktemp("made") / "repository")


@pytest.fixture
def colours(made: Repository, tmp_path: Path) -> Repository:
    """Return a copy of it: a repository with a small model called ``colours``."""
    shutil.copytree(made.root, tmp_path / "repository")
    return Repository(tmp_path / "repository")


@asynccontextmanager
async def started(
    repository: Repository, *, head_bytes: int = registry_module.HEAD_BYTES
) -> AsyncIterator[Registry]:
    """Yield a registry that watches ``repository``."""
    registry = Registry(
        repository, provider="cpu", cores=2, telemetry=Telemetry(), head_bytes=head_bytes
    )
    await registry.start()
    try:
        yield registry
    finally:
        await registry.aclose()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the watching registry does by itself."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.005)


def again(repository: Repository, *, serve: bool = True, head: bytes | None = None) -> int:
    """Publish a copy of revision 1, with another head if one is given, and return its number."""
    first = repository.manifest("colours", 1)
    if head is not None:  # none of those here can tell the unknown
        first = replace(first, chosen=replace(first.chosen, unknown_threshold=None))
    made = tiny.publish_copy(repository, first, head=head)
    if serve:
        repository.set_serving("colours", made.revision, why="test")
    return made.revision


def test_a_swap_never_mixes_two_revisions(colours: Repository) -> None:
    """While revisions are swapped, each answer's labels and scores are of the revision it names.

    The second revision has one label more; both know the picture, so a head of one with the labels
    of the other would call it wrongly.
    """
    exemplars = tiny.embed_pictures({label: pictures(label, 20) for label in ALL})
    tiny.publish(colours, "colours", exemplars)
    labels = {1: {*ALL} - {"violet"}, 2: {*ALL}}
    answers: list[tuple[int, set[str], str]] = []

    async def scenario() -> None:
        async with started(colours) as registry:
            classifier = Classifier(
                registry, limits=DEFAULT_LIMITS, cores=2, queue_limit=64, telemetry=Telemetry()
            )
            classifier.start()
            swapping = True

            async def ask() -> None:
                while swapping:
                    found = await classifier.classify("colours", [picture("green", 50)] * 2)
                    for result in found.results:
                        assert isinstance(result, ImageAnswer)
                        said = [one.label for one in result.predictions]
                        answers.append((found.revision, {*said}, said[0]))

            callers = [asyncio.create_task(ask()) for _ in range(4)]
            for turn in range(30):
                colours.set_serving("colours", 1 + turn % 2, why="test")
                await registry.refresh()
                answered = len(answers)
                await until(
                    lambda before=answered: (  # type: ignore[misc]  # mypy cannot infer a lambda's default
                        len(answers) > before or any(one.done() for one in callers)
                    )
                )
            swapping = False
            await asyncio.gather(*callers)
            classifier.close()

    asyncio.run(scenario())
    assert {revision for revision, _, _ in answers} == {1, 2}
    assert all(found == labels[revision] for revision, found, _ in answers)
    assert {best for _, _, best in answers} == {"green"}


def test_a_registry_that_closes_closes_its_backbones(
    colours: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So threads of a GPU's backbone have ended before the process does."""
    closed: list[str] = []
    monkeypatch.setattr(CpuBackbone, "close", lambda self: closed.append(self.info.name))

    async def scenario() -> None:
        async with started(colours):
            assert closed == []

    asyncio.run(scenario())
    assert closed == ["tiny"]


def test_a_new_revision_is_noticed(colours: Repository) -> None:
    """A registry that nobody tells anything soon serves what serving.json names."""

    async def scenario() -> None:
        async with started(colours) as registry:
            number = again(colours)
            await until(lambda: registry.serving("colours").revision == number)
            colours.set_serving("colours", 1, why="test")
            await until(lambda: registry.serving("colours").revision == 1)

    asyncio.run(scenario())


def test_a_new_model_is_noticed(colours: Repository) -> None:
    """A model that is published while the server runs can be asked."""

    async def scenario() -> list[str]:
        async with started(colours) as registry:
            exemplars = tiny.embed_pictures({one: pictures(one, 5) for one in ALL[:2]})
            tiny.publish(colours, "another", exemplars)
            await until(lambda: len(registry.models()) == 2)
            return registry.models()

    assert asyncio.run(scenario()) == ["another", "colours"]


def tamper_head(folder: Path) -> None:
    """Change a byte of a head."""
    path = folder / "head.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def lose_metrics(folder: Path) -> None:
    """Delete a file that the manifest names."""
    (folder / "metrics.json").unlink()


def cut_manifest(folder: Path) -> None:
    """Leave half a manifest."""
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("damage", [tamper_head, lose_metrics, cut_manifest])
def test_a_damaged_revision_leaves_the_old_one_serving(
    colours: Repository, damage: Callable[[Path], None]
) -> None:
    """A revision that cannot be loaded is logged, the old one serves on, and so does the next."""
    number = again(colours, serve=False)
    damage(colours.root / "models" / "colours" / str(number))
    (colours.root / "models/colours/serving.json.new").write_text(f'{{"revision": {number}}}')

    async def scenario() -> list[Any]:
        async with started(colours) as registry:
            with capture_logs() as logs:
                serving = colours.root / "models/colours/serving.json"
                serving.with_suffix(".json.new").replace(serving)
                await until(lambda: any(line["log_level"] == "error" for line in logs))
            assert registry.serving("colours").revision == 1
            healthy = again(colours)
            await until(lambda: registry.serving("colours").revision == healthy)
            return logs

    (line,) = [line for line in asyncio.run(scenario()) if line["log_level"] == "error"]
    assert (line["event"], line["model"]) == ("revision cannot be loaded", "colours")


def test_a_moment_without_the_repository_is_only_a_moment(
    colours: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revision whose files could not be read for a moment is served when they can be again."""

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

            number = again(colours, serve=False)
            monkeypatch.setattr(colours, "head", unsteady)
            colours.set_serving("colours", number, why="test")
            await asyncio.wait_for(failed.wait(), 60)
            for _ in range(3):
                await registry.refresh()
            assert registry.serving("colours").revision == number

    asyncio.run(scenario())


def a_head_of_another_width(repository: Repository) -> None:
    """Serve a revision whose files are whole but do not fit its backbone."""
    zeros = np.zeros((4, 7), dtype=np.float32)
    again(repository, head=tiny.linear_head(zeros, zeros[:, 0]))


def a_copied_folder(repository: Repository) -> None:
    """Copy a model as file managers do."""
    models = repository.root / "models"
    shutil.copytree(models / "colours", models / "colours (copy)")


@pytest.mark.parametrize("trouble", [a_head_of_another_width, a_copied_folder])
def test_nothing_in_the_repository_stops_the_watching(
    colours: Repository, monkeypatch: pytest.MonkeyPatch, trouble: Callable[[Repository], None]
) -> None:
    """Whatever is wrong with one folder, later revisions of the models are still noticed."""
    monkeypatch.setattr(registry_module, "POLL_SECONDS", 0.001)

    async def scenario() -> None:
        async with started(colours) as registry:
            watcher = registry._watcher
            assert watcher is not None
            trouble(colours)
            looks = Mock(wraps=registry._read_marks)
            monkeypatch.setattr(registry, "_read_marks", looks)
            # When a second look begins the first has ended.
            await until(lambda: looks.call_count > 1 or watcher.done())
            healthy = again(colours)
            await until(lambda: registry.serving("colours").revision == healthy or watcher.done())
            assert not watcher.done()

    asyncio.run(scenario())


@pytest.mark.parametrize("trouble", [a_head_of_another_width, a_copied_folder])
def test_one_bad_model_does_not_keep_the_others_from_serving(
    colours: Repository, trouble: Callable[[Repository], None]
) -> None:
    """A registry starts with all models that can be loaded."""
    exemplars = tiny.embed_pictures({one: pictures(one, 5) for one in ALL[:2]})
    tiny.publish(colours, "another", exemplars)
    trouble(colours)

    async def scenario() -> list[str]:
        async with started(colours) as registry:
            return registry.models()

    assert "another" in asyncio.run(scenario())


def test_old_revisions_can_be_asked_for(colours: Repository) -> None:
    """A revision that does not serve is loaded when it is asked for, and stays."""
    number = again(colours)

    async def scenario() -> None:
        async with started(colours) as registry:
            assert (await registry.snapshot("colours", 0)).manifest.revision == number
            assert await registry.snapshot("colours", number) is await registry.snapshot("colours")
            old = await registry.snapshot("colours", 1)
            assert old.manifest.revision == 1
            assert await registry.snapshot("colours", 1) is old

    asyncio.run(scenario())


@pytest.mark.parametrize(("model", "revision"), [("colours", 2), ("another", 0), ("another", 1)])
def test_unknown_ones_are_not_found(colours: Repository, model: str, revision: int) -> None:
    """A model or revision that was never published is NotFound."""

    async def scenario() -> None:
        async with started(colours) as registry:
            await registry.snapshot(model, revision)

    with pytest.raises(NotFound):
        asyncio.run(scenario())


def test_a_damaged_old_revision_is_corrupt(colours: Repository) -> None:
    """Asking for a revision whose head was changed is Corrupt, and never an answer."""
    again(colours)
    tamper_head(colours.root / "models/colours/1")

    async def scenario() -> None:
        async with started(colours) as registry:
            await registry.snapshot("colours", 1)

    with pytest.raises(Corrupt, match="was changed"):
        asyncio.run(scenario())


def test_models_share_their_backbone(colours: Repository) -> None:
    """Models and revisions on one backbone share one session, and so one queue."""
    exemplars = tiny.embed_pictures({one: pictures(one, 5) for one in ALL[:2]})
    tiny.publish(colours, "another", exemplars)
    again(colours)

    async def scenario() -> None:
        async with started(colours) as registry:
            snapshots = [
                await registry.snapshot(model, revision)
                for model, revision in (("colours", 1), ("colours", 2), ("another", 1))
            ]
            assert len({id(one.backbone) for one in snapshots}) == 1
            assert len({id(one.head) for one in snapshots}) == 3

    asyncio.run(scenario())


def test_a_snapshot_outlives_its_swap(colours: Repository) -> None:
    """Who holds a snapshot can still use all of it after the next revision was swapped in."""

    async def scenario() -> tuple[int, ...]:
        async with started(colours) as registry:
            held = await registry.snapshot("colours")
            number = again(colours)
            await registry.refresh()
            assert registry.serving("colours").revision == number
            delivered: list[Embedded | Exception] = []
            pixels = np.zeros((tiny.SPEC.crop, tiny.SPEC.crop, 3), dtype=np.uint8)
            held.backbone.embed(pixels, delivered.append, present=1)
            (embedded,) = delivered
            assert isinstance(embedded, Embedded)
            return held.head.run(embedded.embedding[None])[0].shape

    assert asyncio.run(scenario()) == (1, 4)


def many(repository: Repository, count: int) -> list[str]:
    """Publish copies of ``colours`` as models of other names, and return them."""
    first = repository.manifest("colours", 1)
    names = [f"colours-{number}" for number in range(count)]
    for name in names:
        made = tiny.publish_copy(repository, first, model=name)
        repository.set_serving(name, made.revision, why="test")
    return names


def test_heads_are_loaded_when_they_are_asked_for(
    colours: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry starts with few of its heads in memory and loads another at its first request."""
    monkeypatch.setattr(registry_module, "WARM_HEADS", 3)
    names = many(colours, 8)

    async def scenario() -> tuple[int, int]:
        async with started(colours) as registry:
            assert registry.models() == ["colours", *names]
            before = registry.heads_in_memory()
            assert (await registry.snapshot(names[-1])).manifest.model == names[-1]
            return before, registry.heads_in_memory()

    assert asyncio.run(scenario()) == (3, 4)


def test_memory_for_heads_is_bounded(colours: Repository) -> None:
    """Of heads that are too many the last ones stay; one that had to leave still answers."""
    names = many(colours, 8)

    async def scenario() -> int:
        async with started(colours) as registry:
            size = (await registry.snapshot("colours")).head.size
        async with started(colours, head_bytes=3 * size) as registry:
            held = await registry.snapshot(names[0])
            for name in names:
                await registry.snapshot(name)
            assert await registry.snapshot(names[0]) is not held
            embeddings = np.ones((2, tiny.WIDTH), dtype=np.float32)
            again = await registry.snapshot(names[0])
            np.testing.assert_array_equal(
                held.head.run(embeddings)[0], again.head.run(embeddings)[0]
            )
            return registry.heads_in_memory()

    assert asyncio.run(scenario()) == 3


def test_a_damaged_head_fails_its_own_requests_only(colours: Repository) -> None:
    """A model whose head was changed before the start is Corrupt when asked; the others answer."""
    (name,) = many(colours, 1)
    tamper_head(colours.root / "models/colours/1")

    async def scenario() -> str:
        async with started(colours) as registry:
            for _ in range(2):
                with pytest.raises(Corrupt, match="was changed"):
                    await registry.snapshot("colours")
            return (await registry.snapshot(name)).manifest.model

    assert asyncio.run(scenario()) == name


def test_a_head_that_cannot_be_read_now_is_unavailable(
    colours: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the file system is away, who needs a head from it is told to try again."""
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


def test_nobody_waits_for_another_model(
    colours: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one model's new revision takes long to load, others answer, load and are swapped."""
    names = many(colours, 3)
    monkeypatch.setattr(registry_module, "WARM_HEADS", 0)
    read, loading, asked = colours.head, threading.Event(), threading.Event()

    def slow(manifest: Manifest) -> bytes:
        if (manifest.model, manifest.revision) == ("colours", 2):
            asked.set()
            assert loading.wait(60), "the test forgot to let it go"
        return read(manifest)

    monkeypatch.setattr(colours, "head", slow)

    async def scenario() -> None:
        async with started(colours) as registry:
            again(colours)
            await until(asked.is_set)
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


def test_a_removed_model_is_gone(colours: Repository) -> None:
    """A model whose directory was removed is NotFound; its other revisions, too; others stay."""
    (name,) = many(colours, 1)
    again(colours)

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


def test_a_model_that_is_made_again_is_another(colours: Repository) -> None:
    """Of a model that was removed and made anew under the same number, the new one answers."""
    folder = colours.root / "models/colours"

    async def scenario() -> tuple[str, ...]:
        async with started(colours) as registry:
            old = await registry.snapshot("colours", 1)
            folder.rename(colours.root / "away")
            tiny.publish(
                colours, "colours", tiny.embed_pictures({one: pictures(one, 5) for one in ALL[:2]})
            )
            await registry.refresh()
            new = await registry.snapshot("colours", 1)
            assert len(old.manifest.labels) == 4
            return new.manifest.labels

    assert asyncio.run(scenario()) == ALL[:2]


def test_a_repository_that_is_away_takes_no_model_along(colours: Repository) -> None:
    """When the whole directory of models cannot be found, what is in memory goes on serving."""
    models = colours.root / "models"

    async def scenario() -> None:
        async with started(colours) as registry:
            models.rename(colours.root / "away")
            with pytest.raises(FileNotFoundError):
                await registry.refresh()
            assert (await registry.snapshot("colours")).manifest.revision == 1
            (colours.root / "away").rename(models)
            number = again(colours)
            await until(lambda: registry.serving("colours").revision == number)

    asyncio.run(scenario())


def test_a_new_repository_has_no_models_yet(tmp_path: Path) -> None:
    """A registry starts on an empty directory and finds the first model that comes."""
    empty = Repository(tmp_path / "new")

    async def scenario() -> list[str]:
        async with started(empty) as registry:
            assert registry.models() == []
            tiny.repository(tmp_path / "new")
            await until(lambda: registry.models() != [])
            return registry.models()

    assert asyncio.run(scenario()) == ["colours"]


def test_costly_looks_are_rarer(colours: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause between looks grows with what a look costs, up to a bound."""
    pauses = []
    for share in (1.0, 1e-9):
        monkeypatch.setattr(registry_module, "POLL_SHARE", share)

        async def scenario() -> None:
            async with started(colours) as registry:
                pauses.append(registry._pause)

        asyncio.run(scenario())
    assert pauses == [registry_module.POLL_SECONDS, registry_module.LONGEST_POLL_SECONDS]


def a_marked_head(revision: int) -> bytes:
    """Return a head whose most probable label, for ones, is ``revision`` modulo the four labels."""
    weights = np.zeros((4, tiny.WIDTH), dtype=np.float32)
    weights[revision % 4] = 1
    return tiny.linear_head(weights, np.zeros(4, dtype=np.float32))


Act = Literal["publish", "roll back", "ask", "ask for the first", "refresh", "yield"]


@pytest.fixture(scope="module")
def acted_on(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository whose revisions from the second on have marked heads."""
    repository = tiny.repository(tmp_path_factory.mktemp("acts") / "repository")
    again(repository, head=a_marked_head(2))
    return repository


@settings(max_examples=30)
@given(acts=st.lists(st.sampled_from(get_args(Act)), min_size=5, max_size=40), small=st.booleans())
def test_a_snapshot_is_all_of_one_revision(
    acted_on: Repository, acts: list[Act], *, small: bool
) -> None:
    """Whatever is published and asked in whatever order, head and manifest are of one revision."""
    repository = acted_on
    repository.set_serving("colours", 2, why="test")
    ones = np.ones((1, tiny.WIDTH), dtype=np.float32)
    newest = repository.revisions("colours")[-1]

    async def asked(registry: Registry, revision: int) -> None:
        snapshot = await registry.snapshot("colours", revision)
        assert revision in {0, snapshot.manifest.revision}
        probabilities, _ = snapshot.head.run(ones)
        assert probabilities.argmax() == snapshot.manifest.revision % 4

    async def scenario() -> None:
        nonlocal newest
        tasks = []
        async with started(repository, head_bytes=1 if small else 2**20) as registry:
            for act in acts:
                match act:
                    case "publish":
                        newest = again(repository, head=a_marked_head(newest + 1))
                    case "roll back":
                        repository.set_serving("colours", 2, why="test")
                    case "ask":
                        tasks.append(asyncio.create_task(asked(registry, 0)))
                    case "ask for the first":
                        tasks.append(asyncio.create_task(asked(registry, 2)))
                    case "refresh":
                        tasks.append(asyncio.create_task(registry.refresh()))
                    case "yield":
                        await asyncio.sleep(0.001)
            await asyncio.gather(*tasks)
            await registry.refresh()
            assert registry.serving("colours").revision == repository.serving("colours")
            await asked(registry, 0)

    asyncio.run(scenario())


@pytest.mark.slow
def test_swaps_leave_nothing_behind(colours: Repository) -> None:
    """After hundreds of swaps under requests, memory holds one head and hardly more bytes."""
    for revision in range(4):
        again(colours, head=a_marked_head(revision))
    ended = subprocess.run(
        [sys.executable, "-m", "support.swapping", str(colours.root)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["heads_in_memory"] == 1
    assert found["heads"] <= 2  # the last answer may still lie in a task that has ended
    assert found["growth"] < 4_000_000
