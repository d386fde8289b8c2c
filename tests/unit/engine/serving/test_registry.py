"""Which revision answers, and how the next one takes its place."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs
from support import tiny
from support.pictures import picture, pictures

from topwork.bundle.limits import DEFAULT_LIMITS
from topwork.bundle.store import Repository
from topwork.engine.serving.classifier import Answer, Classifier
from topwork.engine.serving.registry import Registry
from topwork.errors import Corrupt, NotFound

ALL = ("amber", "blue", "crimson", "green", "violet")


@asynccontextmanager
async def started(repository: Repository) -> AsyncIterator[Registry]:
    """Yield a registry that watches ``repository``."""
    registry = Registry(repository, provider="cpu", cores=2)
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
    made = tiny.publish_copy(repository, first, head=head)
    if serve:
        repository.set_serving("colours", made.revision)
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
            classifier = Classifier(registry, limits=DEFAULT_LIMITS, cores=2, queue_limit=64)
            classifier.start()
            swapping = True

            async def ask() -> None:
                while swapping:
                    found = await classifier.classify("colours", [picture("green", 50)] * 2)
                    for result in found.results:
                        assert isinstance(result, Answer)
                        said = [one.label for one in result.predictions]
                        answers.append((found.revision, {*said}, said[0]))

            callers = [asyncio.create_task(ask()) for _ in range(4)]
            for turn in range(30):
                colours.set_serving("colours", 1 + turn % 2)
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


def test_a_new_revision_is_noticed(colours: Repository) -> None:
    """A registry that nobody tells anything soon serves what serving.json names."""

    async def scenario() -> None:
        async with started(colours) as registry:
            number = again(colours)
            await until(lambda: registry.serving("colours").manifest.revision == number)
            colours.set_serving("colours", 1)
            await until(lambda: registry.serving("colours").manifest.revision == 1)

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
            assert registry.serving("colours").manifest.revision == 1
            healthy = again(colours)
            await until(lambda: registry.serving("colours").manifest.revision == healthy)
            return logs

    (line,) = [line for line in asyncio.run(scenario()) if line["log_level"] == "error"]
    assert (line["event"], line["model"]) == ("revision cannot be loaded", "colours")


def test_a_moment_without_the_repository_is_only_a_moment(
    colours: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revision whose files could not be read for a moment is served when they can be again."""

    async def scenario() -> None:
        async with started(colours) as registry:
            load = registry._load_serving
            failed = asyncio.Event()
            loop = asyncio.get_running_loop()

            def unsteady(model: str) -> Any:
                if not failed.is_set():
                    loop.call_soon_threadsafe(failed.set)
                    raise OSError(116, "Stale file handle")
                return load(model)

            monkeypatch.setattr(registry, "_load_serving", unsteady)
            number = again(colours)
            await asyncio.wait_for(failed.wait(), 60)
            for _ in range(3):
                await registry.refresh()
            assert registry.serving("colours").manifest.revision == number

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
    colours: Repository, trouble: Callable[[Repository], None]
) -> None:
    """Whatever is wrong with one folder, later revisions of the models are still noticed."""

    async def scenario() -> bool:
        async with started(colours) as registry:
            with capture_logs() as logs:
                trouble(colours)
                assert registry._watcher is not None
                await asyncio.wait({registry._watcher}, timeout=0.5)
                assert not registry._watcher.done(), logs
                healthy = again(colours)
                await until(lambda: registry.serving("colours").manifest.revision == healthy)
            return True

    assert asyncio.run(scenario())


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
            assert await registry.snapshot("colours", number) is registry.serving("colours")
            old = await registry.snapshot("colours", 1)
            assert old.manifest.revision == 1
            assert await registry.snapshot("colours", 1) is old

    asyncio.run(scenario())


def test_a_revision_that_many_ask_for_is_loaded_once(
    colours: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When many ask for an old revision at once, one load answers them all."""
    again(colours)

    async def scenario() -> int:
        async with started(colours) as registry:
            loads = []
            load = registry._load

            def counted(model: str, revision: int) -> Any:
                loads.append(revision)
                return load(model, revision)

            monkeypatch.setattr(registry, "_load", counted)
            await asyncio.gather(*(registry.snapshot("colours", 1) for _ in range(20)))
            return len(loads)

    assert asyncio.run(scenario()) == 1


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
            held = registry.serving("colours")
            number = again(colours)
            await registry.refresh()
            assert registry.serving("colours").manifest.revision == number
            pixels = np.zeros((tiny.SPEC.crop, tiny.SPEC.crop, 3), dtype=np.uint8)
            embedded = await held.backbone.batcher.submit(pixels)
            return held.head.run(embedded.embedding[None]).shape

    assert asyncio.run(scenario()) == (1, 4)
