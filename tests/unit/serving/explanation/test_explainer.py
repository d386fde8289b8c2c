"""Explainer: answers of Explain requests, beside Classify requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from support import pooling, tiny
from support.pictures import picture

import topwork
from topwork.bundle.comparison import Gate, Rejection
from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.store import Repository
from topwork.errors import DeadlinePassed, ImageError, InvalidInput, NotFound, NotReady
from topwork.limits import DEFAULT_LIMITS
from topwork.serving.classifier import Classifier
from topwork.serving.classify_batch import Classified
from topwork.serving.encoders.encoder import Check
from topwork.serving.encoders.threads import ThreadEncoder
from topwork.serving.examples import Examples
from topwork.serving.explanation.explainer import Explainer, Explanation
from topwork.serving.explanation.mapped_backbones import MappedBackbones
from topwork.serving.registry import Registry
from topwork.telemetry import Telemetry

FLOWER, CENTRE = pooling.flower("blue", 50)


class Loads(ThreadEncoder):
    """Encoder that notes the backbones that are loaded."""

    def __init__(self) -> None:
        super().__init__(provider="cpu", cores=2, limits=DEFAULT_LIMITS)
        self.backbones: list[str] = []

    async def load(self, info: BackboneInfo, model: Callable[[], bytes]) -> Check:
        """See Encoder."""
        self.backbones.append(info.digest)
        return await super().load(info, model)

    def unload(self, digest: str) -> None:
        """See Encoder."""
        self.backbones.remove(digest)
        super().unload(digest)


@asynccontextmanager
async def started(repository: Repository) -> AsyncIterator[tuple[Explainer, Classifier, Loads]]:
    """Yield an explainer with its classifier and encoder."""
    encoder = Loads()
    registry = Registry(repository, encoder, telemetry=Telemetry())
    classifier = Classifier(
        registry,
        encoder,
        limits=DEFAULT_LIMITS,
        cores=2,
        queue_limit=64,
        telemetry=Telemetry(),
    )
    await classifier.start()
    try:
        await registry.start()
        backbones = MappedBackbones(repository, encoder)
        yield Explainer(classifier, backbones, Examples(repository)), classifier, encoder
    finally:
        await classifier.aclose()
        await registry.aclose()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository with ``discs``, which has maps, and ``colours``, which has none."""
    root = tmp_path_factory.mktemp("explainer")
    tiny.repository(root)
    return pooling.repository(root)


def test_explanation_has_the_answer_of_classify(repository: Repository) -> None:
    """With the map of the predicted label, and neighbours of the same label."""

    async def scenario() -> None:
        async with started(repository) as (explainer, classifier, _):
            found = await explainer.explain("discs", FLOWER, neighbours=3)
            (expected,) = (await classifier.classify("discs", [FLOWER])).results
            assert found.answer == expected
            assert found.explained.label == "blue"
            assert found.explained.evidence is not None
            assert found.region == (0, 0, 1, 1)
            assert [near.label for near in found.neighbours] == ["blue"] * 3
            assert not (await explainer.explain("discs", FLOWER)).neighbours

    asyncio.run(scenario())


def test_backbone_without_map_gives_the_reason_and_neighbours(repository: Repository) -> None:
    """It is loaded once, as its own classifier uses it."""

    async def scenario() -> None:
        async with started(repository) as (explainer, _, encoder):
            before = list(encoder.backbones)
            found = await explainer.explain("colours", picture("green", 40), neighbours=2)
            assert found.explained.evidence is None
            assert found.explained.unavailable.startswith("the backbone has no map: its embedding")
            assert [near.label for near in found.neighbours] == ["green", "green"]
            assert found.explained.label == "green"
            assert encoder.backbones == before

    asyncio.run(scenario())


def test_explain_and_classify_run_side_by_side(repository: Repository) -> None:
    """Concurrent first explanations load one variant; each call gets its own answer."""

    async def scenario() -> None:
        async with started(repository) as (explainer, classifier, encoder):
            before = len(encoder.backbones)
            labels = ["amber", "blue", "crimson"] * 4
            flowers = [pooling.flower(label, 60 + n)[0] for n, label in enumerate(labels)]
            answers = await asyncio.gather(
                *(explainer.explain("discs", flower, neighbours=1) for flower in flowers),
                *(classifier.classify("discs", [flower]) for flower in flowers),
            )
            assert len(encoder.backbones) == before + 1
            for label, found, classified in zip(labels, answers, answers[12:], strict=False):
                assert isinstance(found, Explanation)
                assert isinstance(classified, Classified)
                assert found.explained.label == label
                assert classified.results == (found.answer,)

    asyncio.run(scenario())


def test_variant_is_unloaded_with_its_backbone(tmp_path: Path) -> None:
    """When no model uses the backbone any more."""
    copied = pooling.repository(tmp_path)

    async def scenario() -> None:
        async with started(copied) as (explainer, classifier, encoder):
            await explainer.explain("discs", FLOWER)
            assert len(encoder.backbones) == 2
            (copied.root / "models" / "discs" / "serving.json").unlink()
            async with asyncio.timeout(30):
                while encoder.backbones:  # noqa: ASYNC110  # the registry polls
                    await asyncio.sleep(0.01)
            with pytest.raises(NotFound):
                await classifier.classify("discs", [FLOWER])

    asyncio.run(scenario())


def test_bad_requests_are_refused(repository: Repository) -> None:
    """Each with its error; nothing else fails."""

    async def scenario() -> None:
        async with started(repository) as (explainer, _, _):
            with pytest.raises(NotFound, match="revision 1 of model 'discs' has no label 'tulip'"):
                await explainer.explain("discs", FLOWER, label="tulip")
            with pytest.raises(InvalidInput, match="neighbours is 51; it must be 0 to 50"):
                await explainer.explain("discs", FLOWER, neighbours=51)
            with pytest.raises(InvalidInput, match="top_k is -1"):
                await explainer.explain("discs", FLOWER, top_k=-1)
            with pytest.raises(ImageError, match="unknown format") as refused:
                await explainer.explain("discs", b"no image at all")
            assert refused.value.field == "image"
            with pytest.raises(NotFound):
                await explainer.explain("discs", FLOWER, revision=9)
            with pytest.raises(DeadlinePassed):
                await explainer.explain("discs", FLOWER, budget=1e-9)
            assert (await explainer.explain("discs", FLOWER)).explained.label == "blue"

    asyncio.run(scenario())


def test_rejected_revision_is_refused(tmp_path: Path) -> None:
    """As by Classify."""
    made = pooling.repository(tmp_path)
    rejection = Rejection(gate=Gate(), failures=("recall 0.5 is below 0.6",))
    manifest = replace(made.manifest("discs", 1), rejection=rejection)
    rejected = tiny.publish_copy(made, manifest)

    async def scenario() -> None:
        async with started(made) as (explainer, _, _):
            with pytest.raises(NotReady, match="was rejected: ") as refused:
                await explainer.explain("discs", FLOWER, revision=rejected.revision)
            assert refused.value.reason == "REVISION_REJECTED"

    asyncio.run(scenario())


@pytest.mark.parametrize("exif", [1, 6])
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (64, 128)])
def test_map_lies_over_the_upright_image(
    repository: Repository, exif: int, size: tuple[int, int]
) -> None:
    """The strongest cell of the map is the flower, in fractions of the upright image."""
    model = topwork.open(repository.root, "discs")
    for index in range(20):
        content, (x, y) = pooling.flower("crimson", index, size=size, exif=exif)
        found = model.explain(content, label="crimson", neighbours=0).map
        assert found is not None
        left, top, right, bottom = found.region
        width, height = size
        assert (right - left) * width == pytest.approx(min(size))
        assert (bottom - top) * height == pytest.approx(min(size))
        if not (left + 0.1 < x < right - 0.1 and top + 0.1 < y < bottom - 0.1):
            continue  # cropped away
        rows = found.values
        row = max(range(len(rows)), key=lambda row: max(rows[row]))
        column = max(range(len(rows[row])), key=lambda column: rows[row][column])
        assert left + (column + 0.5) / len(rows[0]) * (right - left) == pytest.approx(x, abs=0.2)
        assert top + (row + 0.5) / len(rows) * (bottom - top) == pytest.approx(y, abs=0.2)


def test_model_in_this_process_explains_like_the_server(repository: Repository) -> None:
    """Evidence, predictions and neighbours are equal."""
    model = topwork.open(repository.root, "discs")
    found = model.explain(FLOWER, label="amber", neighbours=4)
    assert found.map is not None

    async def scenario() -> Explanation:
        async with started(repository) as (explainer, _, _):
            return await explainer.explain("discs", FLOWER, label="amber", neighbours=4)

    served = asyncio.run(scenario())
    assert served.explained.evidence is not None
    assert [near.digest for near in found.neighbours] == [each.digest for each in served.neighbours]
    assert found.label == served.explained.label == "amber"
    assert found.revision == 1
    for row, expected in zip(found.map.values, served.explained.evidence.map, strict=True):
        assert row == pytest.approx(expected.tolist(), abs=1e-5)
    total = sum(map(sum, found.map.values)) + found.map.bias + found.map.rest
    assert total == pytest.approx(found.map.logit, abs=1e-4)
    with pytest.raises(NotFound):
        model.explain(FLOWER, label="tulip")
    with pytest.raises(ImageError):
        model.explain(b"no image at all")
