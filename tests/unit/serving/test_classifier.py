"""Classifier: results per image, deadlines, load shedding, and release of capacity."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import tiny
from support.pictures import picture, pictures

from topwork.bundle.manifest import Manifest
from topwork.bundle.store import Repository
from topwork.errors import (
    DeadlinePassed,
    ImageError,
    InvalidInput,
    NotFound,
    Overloaded,
)
from topwork.inputs.image import Pixels, Prepared, prepare, preprocess
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import DEFAULT_LIMITS, ServerLimits
from topwork.serving.classifier import Classifier
from topwork.serving.classify_batch import Classified, ClassifierInput, ImageAnswer
from topwork.serving.encoders import decoding, pipeline
from topwork.serving.encoders.backbone import Backbone, DeliverEmbedded
from topwork.serving.encoders.backbones import open_backbone
from topwork.serving.encoders.threads import ITEMS_PER_THREAD, ThreadEncoder
from topwork.serving.fair_queue import Flow
from topwork.serving.registry import Registry
from topwork.serving.scheduler import EncodingError
from topwork.telemetry import Telemetry

LABELS = ("amber", "blue", "crimson", "green")
PHOTOS = {label: picture(label, 40) for label in LABELS}
JUNK = b"no image at all"


class GatedBackbone:
    """Backbone that counts images and blocks while its gate is closed."""

    def __init__(self, backbone: Backbone) -> None:
        self.images = 0
        self.seen: list[Pixels] = []
        self.broken = False
        self.closed = False
        self.info = backbone.info
        self.seconds, self.check = backbone.seconds, backbone.check
        self._backbone = backbone
        self._open = threading.Event()
        self._open.set()

    def embed(self, pixels: Pixels, deliver: DeliverEmbedded, *, wide: bool) -> None:
        """Embed when the gate is open."""
        self.images += 1
        self.seen.append(pixels)
        assert self._open.wait(60), "the test forgot to open the gate"
        if self.broken:
            deliver(ArithmeticError("the backbone is broken"))
        else:
            self._backbone.embed(pixels, deliver, wide=wide)

    def close(self) -> None:
        """See Backbone."""
        self.closed = True
        self._backbone.close()

    def shut(self) -> None:
        """Block images."""
        self._open.clear()

    def open(self) -> None:
        """Let images pass."""
        self._open.set()


class Harness:
    """Classifier with its registry and gated backbone."""

    def __init__(self, classifier: Classifier, registry: Registry, gate: GatedBackbone) -> None:
        self.classifier = classifier
        self.registry = registry
        self.gate = gate

    async def classify(
        self, *images: bytes, top_k: int = 0, budget: float | None = 60.0
    ) -> Classified:
        """Classify with the serving revision."""
        return await self.classifier.classify("colours", images, top_k=top_k, budget=budget)

    def ask(self, count: int, budget: float | None = 60.0) -> asyncio.Task[Classified]:
        """Start a task that classifies ``count`` images."""
        return asyncio.create_task(self.classify(*[PHOTOS["blue"]] * count, budget=budget))

    async def check_permits(self, queue_limit: int) -> None:
        """Assert that exactly ``queue_limit`` images are admitted: no capacity is lost."""
        self.gate.shut()
        before = self.gate.images
        full = self.ask(queue_limit)
        try:
            await until(lambda: full.done() or self.gate.images > before)
            assert not full.done(), "permits are missing"
            with pytest.raises(Overloaded):
                await self.classify(PHOTOS["blue"])
        finally:
            self.gate.open()
        await full


@asynccontextmanager
async def started(
    repository: Repository,
    *,
    queue_limit: int = 64,
    limits: ServerLimits = DEFAULT_LIMITS,
    cores: int = 2,
) -> AsyncIterator[Harness]:
    """Yield a started classifier with a thread per core and a gated backbone."""
    gates: list[GatedBackbone] = []

    def behind_gate(*args: Any, **options: Any) -> GatedBackbone:
        gates.append(GatedBackbone(open_backbone(*args, **options)))
        return gates[-1]

    encoder = ThreadEncoder(provider="cpu", cores=cores, limits=limits)
    registry = Registry(repository, encoder, telemetry=Telemetry())
    classifier = Classifier(
        registry,
        encoder,
        limits=limits,
        cores=cores,
        queue_limit=queue_limit,
        telemetry=Telemetry(),
    )
    await classifier.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "open_backbone", behind_gate)
            await registry.start()
        (gate,) = gates
        yield Harness(classifier, registry, gate)
    finally:
        for gate in gates:
            gate.open()
        await classifier.aclose()
        await registry.aclose()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that another thread makes true."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        await asyncio.sleep(0.001)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository that no test changes."""
    return tiny.repository(tmp_path_factory.mktemp("classifier") / "repository")


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """Yield an event loop for many small scenarios."""
    with asyncio.Runner() as made:
        yield made


def best(result: ImageAnswer | ImageError) -> str:
    """Return the most probable label."""
    assert not isinstance(result, ImageError)
    return result.predictions[0].label


def test_unreadable_image_is_an_error_in_its_position(repository: Repository) -> None:
    """Results are in request order; an unreadable image is an error with its index."""
    images = [PHOTOS["green"], JUNK, PHOTOS["amber"], b"", PHOTOS["crimson"], PHOTOS["blue"][:200]]

    async def scenario() -> Classified:
        async with started(repository) as harness:
            return await harness.classify(*images)

    results = asyncio.run(scenario()).results
    assert [best(results[place]) for place in (0, 2, 4)] == ["green", "amber", "crimson"]
    for place in (1, 3, 5):
        error = results[place]
        assert isinstance(error, ImageError)
        assert (error.field, error.reason) == (f"images[{place}]", "IMAGE_UNREADABLE")
    assert len(results) == 6


def test_request_with_only_unreadable_images_is_answered(repository: Repository) -> None:
    """A request without a readable image is answered with one error per image."""

    async def scenario() -> Classified:
        async with started(repository) as harness:
            return await harness.classify(JUNK, JUNK)

    assert [type(result) for result in asyncio.run(scenario()).results] == [ImageError, ImageError]


def test_too_large_image_is_an_error_of_that_image(repository: Repository) -> None:
    """An image with too many bytes or pixels is refused alone, with the value and the limit."""
    limits = replace(DEFAULT_LIMITS, max_image_bytes=7_000, max_image_pixels=2_000)
    images = [PHOTOS["blue"], picture("blue", 0, size=(60, 50)), picture("blue", 0, size=(50, 41))]

    async def scenario() -> Classified:
        async with started(repository, limits=limits) as harness:
            return await harness.classify(*images)

    small, *errors = asyncio.run(scenario()).results
    assert best(small) == "blue"
    for error, limit in zip(errors, ("MiB", "2000 pixels"), strict=True):
        assert isinstance(error, ImageError)
        assert error.reason == "IMAGE_TOO_LARGE"
        assert limit in str(error)


@pytest.mark.slow
def test_batch_result_equals_single_result(repository: Repository) -> None:
    """The answer for an image does not depend on other images of the request or micro-batch."""
    with asyncio.Runner() as loop:
        entered = started(repository)
        harness = loop.run(entered.__aenter__())
        alone = {
            label: loop.run(harness.classify(photo)).results[0] for label, photo in PHOTOS.items()
        }

        @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
        @given(st.lists(st.sampled_from([*LABELS, "junk"]), min_size=1, max_size=20))
        def check(shown: list[str]) -> None:
            answer = loop.run(harness.classify(*[PHOTOS.get(name, JUNK) for name in shown]))
            assert len(answer.results) == len(shown)
            for name, result in zip(shown, answer.results, strict=True):
                assert isinstance(result, ImageError) == (name == "junk")
                if not isinstance(result, ImageError):
                    assert same(result, alone[name])

        check()
        loop.run(entered.__aexit__(None, None, None))


def same(left: ImageAnswer | ImageError, right: ImageAnswer | ImageError) -> bool:
    """Return True if two results are equal up to rounding."""
    assert not isinstance(left, ImageError)
    assert not isinstance(right, ImageError)
    expected = {prediction.label: prediction.probability for prediction in right.predictions}
    return left.predictions[0].label == right.predictions[0].label and {
        prediction.label: prediction.probability for prediction in left.predictions
    } == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("top_k", "expected"), [(1, 1), (3, 3), (6, 6), (7, 6), (0, 5)])
def test_top_k(tmp_path: Path, top_k: int, expected: int) -> None:
    """The top_k most probable labels are returned: 5 if it is 0, at most all labels."""
    made = Repository(tmp_path)
    photos = {f"label-{index}": pictures("amber", 5, start=5 * index) for index in range(6)}
    tiny.publish(made, "colours", tiny.embed_pictures(photos))

    async def scenario() -> Classified:
        async with started(made) as harness:
            return await harness.classify(PHOTOS["amber"], top_k=top_k)

    (result,) = asyncio.run(scenario()).results
    assert not isinstance(result, ImageError)
    probabilities = [prediction.probability for prediction in result.predictions]
    assert (
        len({prediction.label for prediction in result.predictions})
        == len(result.predictions)
        == expected
    )
    assert probabilities == sorted(probabilities, reverse=True)
    if expected == 6:
        assert sum(probabilities) == pytest.approx(1, abs=1e-6)


def test_ties_are_sorted_by_label(colours: Repository) -> None:
    """Labels of equal probability are in label order."""
    manifest = colours.manifest("colours", 1)
    head = tiny.linear_head(
        np.zeros((4, tiny.WIDTH), dtype=np.float32), np.array([0, 1, 0, 1], dtype=np.float32)
    )
    cannot_tell = replace(manifest, chosen=replace(manifest.chosen, unknown_threshold=None))
    made = tiny.publish_copy(colours, cannot_tell, head=head)
    colours.set_serving("colours", made.revision, why="test")

    async def scenario() -> Classified:
        async with started(colours) as harness:
            return await harness.classify(PHOTOS["green"])

    (result,) = asyncio.run(scenario()).results
    assert not isinstance(result, ImageError)
    assert [prediction.label for prediction in result.predictions] == [
        "blue",
        "green",
        "amber",
        "crimson",
    ]


@pytest.mark.parametrize(("direction", "is_unknown"), [(0, True), (1, False), (-1, True)])
def test_image_at_the_threshold_is_unknown(
    colours: Repository, direction: int, is_unknown: bool
) -> None:
    """An image is unknown if its probability is at least the threshold."""

    async def ask() -> ImageAnswer:
        async with started(colours) as harness:
            (result,) = (await harness.classify(PHOTOS["green"])).results
        assert not isinstance(result, ImageError)
        return result

    probability = asyncio.run(ask()).unknown_probability
    assert probability is not None
    threshold = np.nextafter(probability, probability + direction)
    manifest = colours.manifest("colours", 1)
    moved = replace(manifest, chosen=replace(manifest.chosen, unknown_threshold=float(threshold)))
    colours.set_serving("colours", tiny.publish_copy(colours, moved).revision, why="test")
    result = asyncio.run(ask())
    assert (result.unknown_probability, result.is_unknown) == (probability, is_unknown)


class Preprocessed:
    """Start a task that classifies ``count`` images."""

    def __init__(self, label: str) -> None:
        self._label = label

    @property
    def size(self) -> int:
        """See Prepared."""
        return len(PHOTOS[self._label])

    def pixels(self, spec: PreprocessSpec) -> Pixels:
        """See Prepared."""
        return preprocess(PHOTOS[self._label], spec)


def test_infer_returns_arrays(repository: Repository) -> None:
    """Encoded and preprocessed images have one row of probabilities, logits and embeddings each."""

    async def scenario() -> None:
        async with started(repository) as harness:
            shown = ["green", "amber", "blue"]
            answer = await harness.classify(*[PHOTOS[label] for label in shown])
            images: list[ClassifierInput] = [PHOTOS["green"], Preprocessed("amber"), PHOTOS["blue"]]
            found = await harness.classifier.infer("colours", images, logits=True)
            assert (found.revision, found.labels) == (1, LABELS)
            for row, result in zip(found.probabilities, answer.results, strict=True):
                assert not isinstance(result, ImageError)
                for prediction in result.predictions:
                    assert row[LABELS.index(prediction.label)] == pytest.approx(
                        prediction.probability, abs=1e-6
                    )
            assert found.logits is not None
            assert found.logits.argmax(axis=1).tolist() == [LABELS.index(label) for label in shown]
            pixels = preprocess(PHOTOS["amber"], tiny.SPEC)
            means = pixels.reshape(4, 4, 4, 4, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
            np.testing.assert_allclose(found.embeddings[1], means.ravel(), rtol=1e-5)
            assert (await harness.classifier.infer("colours", images)).logits is None

    asyncio.run(scenario())


def test_infer_raises_the_first_image_error(repository: Repository) -> None:
    """The first unreadable image fails the request, with its index; all capacity is released."""

    async def scenario() -> None:
        async with started(repository, queue_limit=4) as harness:
            images = [PHOTOS["green"], JUNK, PHOTOS["amber"], b""]
            with pytest.raises(ImageError, match=r"^image 1: the image \(15 bytes\)") as caught:
                await harness.classifier.infer("colours", images)
            assert (caught.value.field, caught.value.reason) == ("images[1]", "IMAGE_UNREADABLE")
            await harness.check_permits(4)

    asyncio.run(scenario())


def test_statistics_count_requests_and_images(repository: Repository) -> None:
    """Answered requests are counted with images and seconds; failed requests separately."""

    async def scenario() -> None:
        async with started(repository, queue_limit=4) as harness:
            statistics = harness.classifier.statistics
            assert statistics.of("colours") == {}
            answer = await harness.classify(PHOTOS["green"], JUNK)
            done = statistics.of("colours")[1]
            timings = answer.timings
            assert (done.answered, done.failed, done.images, done.runs) == (1, 0, 1, 1.0)
            assert (done.total, done.queue, done.decode) == (
                timings.total,
                timings.queue,
                timings.decode,
            )
            assert (done.backbone, done.head) == (timings.backbone, timings.head)
            await harness.classifier.infer("colours", [PHOTOS["blue"]] * 3)
            assert (done.answered, done.failed, done.images, done.runs) == (2, 0, 4, 4.0)
            with pytest.raises(ImageError):
                await harness.classifier.infer("colours", [JUNK])
            harness.gate.shut()
            with pytest.raises(DeadlinePassed):
                await harness.classify(PHOTOS["blue"], budget=0.01)
            harness.gate.open()
            assert (done.answered, done.failed, done.images) == (2, 2, 4)
            assert done.failed_total >= 0.01

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("images", "options", "field"),
    [
        (0, {}, "images"),
        (5, {}, "images"),
        (1, {"top_k": -1}, "top_k"),
        (1, {"revision": -3}, "revision"),
    ],
)
def test_invalid_request_is_refused(
    repository: Repository, images: int, options: dict[str, Any], field: str
) -> None:
    """InvalidInput for a wrong number of images, or a negative top_k or revision, has the field."""

    async def scenario() -> None:
        async with started(
            repository, limits=replace(DEFAULT_LIMITS, max_images_per_request=4)
        ) as harness:
            await harness.classifier.classify("colours", [PHOTOS["blue"]] * images, **options)

    with pytest.raises(InvalidInput) as caught:
        asyncio.run(scenario())
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("model", "revision", "named"),
    [("colors", 0, "models/colors"), ("colours", 9, "models/colours/revisions/9")],
)
def test_unknown_model_or_revision_is_not_found(
    repository: Repository, model: str, revision: int, named: str
) -> None:
    """NotFound has the name of the model or revision."""

    async def scenario() -> None:
        async with started(repository) as harness:
            await harness.classifier.classify(model, [PHOTOS["blue"]], revision=revision)

    with pytest.raises(NotFound) as caught:
        asyncio.run(scenario())
    assert caught.value.resource == named


def test_request_past_its_deadline_is_dropped(repository: Repository) -> None:
    """A request past its deadline is DeadlinePassed, leaves the queue, and releases its capacity.

    The two threads hold one image each; no other image may reach the backbone, not even those that
    the encoder has taken already.
    """

    async def scenario() -> int:
        async with started(repository, queue_limit=6) as harness:
            harness.gate.shut()
            late = harness.ask(6, budget=0.2)
            with pytest.raises(DeadlinePassed, match=r"6 images .* 0\.200 s"):
                await late
            harness.gate.open()
            await harness.classify(PHOTOS["blue"])
            images = harness.gate.images
            await harness.check_permits(6)
            return images

    assert asyncio.run(scenario()) <= 2 + 1


def test_earliest_deadline_is_served_first(repository: Repository) -> None:
    """In the same turn the earliest deadline is first; requests without a deadline are last.

    This holds for classify and infer.
    """

    async def scenario() -> list[str]:
        async with started(repository, cores=1) as harness:
            harness.gate.shut()
            first = harness.ask(ITEMS_PER_THREAD)  # all that the encoder takes
            await until(lambda: harness.gate.images == 1)
            classify, infer = harness.classifier.classify, harness.classifier.infer
            waiting = [
                asyncio.create_task(ask("colours", [PHOTOS[label]], budget=budget))
                for ask, label, budget in (
                    (classify, "amber", None),
                    (infer, "green", 50.0),
                    (classify, "blue", 40.0),
                    (infer, "crimson", 30.0),
                )
            ]
            await until(lambda: harness.classifier._scheduler.waiting() == 4)
            harness.gate.open()
            await asyncio.gather(first, *waiting)
            return [shown(pixels) for pixels in harness.gate.seen[ITEMS_PER_THREAD:]]

    assert asyncio.run(scenario()) == ["crimson", "blue", "green", "amber"]


def shown(pixels: Pixels) -> str:
    """Return the label of the photo with these pixels."""
    return next(
        label
        for label, photo in PHOTOS.items()
        if np.array_equal(preprocess(photo, tiny.SPEC), pixels)
    )


def test_deadline_includes_loading_a_revision(
    colours: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request for a revision that loads slowly ends at its deadline."""
    loading = threading.Event()
    manifest = colours.manifest("colours", 1)
    tiny.publish_copy(colours, manifest)

    async def scenario() -> bool:
        async with started(colours) as harness:
            load = harness.registry._load_head

            def slow(manifest: Manifest, width: int) -> object:
                loading.wait(60)
                return load(manifest, width)

            monkeypatch.setattr(harness.registry, "_load_head", slow)
            task = asyncio.create_task(
                harness.classifier.classify("colours", [PHOTOS["blue"]], revision=2, budget=0.05)
            )
            await asyncio.wait({task}, timeout=1)
            in_time = task.done()
            loading.set()
            with pytest.raises(DeadlinePassed):
                await task
            return in_time

    assert asyncio.run(scenario())


def test_overload_is_refused_at_once(repository: Repository) -> None:
    """A request beyond the capacity is Overloaded with a retry delay; others are answered."""

    async def scenario() -> Overloaded:
        async with started(repository, queue_limit=4) as harness:
            harness.gate.shut()
            first = harness.ask(3)
            await until(lambda: harness.gate.images > 0)
            with pytest.raises(Overloaded) as caught:
                await harness.classify(PHOTOS["blue"], PHOTOS["blue"])
            second = harness.ask(1)
            harness.gate.open()
            await asyncio.gather(first, second)
            await harness.check_permits(4)
            return caught.value

    error = asyncio.run(scenario())
    assert error.retry_after > 0
    assert "3 images are queued, 2 more would exceed the limit of 4" in str(error)


def test_request_that_would_miss_its_deadline_is_refused_at_once(repository: Repository) -> None:
    """A short budget behind a long queue is refused with NO_TIME; a longer budget is admitted."""

    async def scenario() -> Overloaded:
        async with started(repository) as harness:
            harness.gate.shut()
            first = harness.ask(40)
            await until(lambda: harness.gate.images == 2)
            with pytest.raises(Overloaded) as caught:
                await harness.ask(10, budget=0.1)
            second = harness.ask(10, budget=60.0)
            harness.gate.open()
            await asyncio.gather(first, second)
            await harness.check_permits(64)
            return caught.value

    error = asyncio.run(scenario())
    assert error.reason == "NO_TIME"
    assert error.retry_after > 0
    assert "the call has 0.100 s" in str(error)


def test_call_that_can_wait_waits_for_capacity(repository: Repository) -> None:
    """A call that can wait is not refused for lack of capacity or time, but answered later."""

    async def scenario() -> tuple[Classified, Classified]:
        async with started(repository, queue_limit=4) as harness:
            harness.gate.shut()
            first = harness.ask(4)
            await until(lambda: harness.gate.images == 2)
            waiting = [
                asyncio.create_task(
                    harness.classifier.classify(
                        "colours", [PHOTOS[label]] * 2, budget=60.0, can_wait=True
                    )
                )
                for label in ("green", "amber")
            ]
            with pytest.raises(Overloaded):
                await harness.ask(1)
            assert not any(task.done() for task in waiting)
            harness.gate.open()
            await first
            green, amber = await asyncio.gather(*waiting)
            await harness.check_permits(4)
            return green, amber

    for classified, label in zip(asyncio.run(scenario()), ("green", "amber"), strict=True):
        assert [best(result) for result in classified.results] == [label] * 2


def test_call_that_can_wait_has_a_deadline(repository: Repository) -> None:
    """A call that waits for capacity past its deadline is DeadlinePassed and takes no capacity."""

    async def scenario() -> None:
        async with started(repository, queue_limit=4) as harness:
            harness.gate.shut()
            first = harness.ask(4)
            await until(lambda: harness.gate.images == 2)
            with pytest.raises(DeadlinePassed, match=r"1 images .* 0\.100 s"):
                await harness.classifier.classify(
                    "colours", [PHOTOS["green"]], budget=0.1, can_wait=True
                )
            harness.gate.open()
            await first
            await harness.check_permits(4)

    asyncio.run(scenario())


@pytest.mark.parametrize("shared", [True, False])
def test_calls_of_one_flow_share_their_turns(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """A late caller precedes all but the first calls of a flow, but not calls of separate flows."""
    taken: list[bytes] = []

    def noting(content: bytes, *args: Any, **options: Any) -> Prepared:
        taken.append(content)
        return prepare(content, *args, **options)

    async def scenario() -> int:
        async with started(repository, cores=1) as harness:
            monkeypatch.setattr(decoding, "prepare", noting)
            harness.gate.shut()
            first = harness.ask(ITEMS_PER_THREAD)  # all that the encoder takes
            await until(lambda: harness.gate.images == 1)
            flow = Flow()
            early = [
                asyncio.create_task(
                    harness.classifier.classify(
                        "colours", [PHOTOS["amber"]], flow=flow if shared else None
                    )
                )
                for _ in range(8)
            ]
            late = asyncio.create_task(harness.classify(PHOTOS["green"], budget=None))
            await until(lambda: harness.classifier._scheduler.waiting() == 9)
            harness.gate.open()
            await asyncio.gather(first, *early, late)
            return taken.index(PHOTOS["green"]) - ITEMS_PER_THREAD

    assert asyncio.run(scenario()) == (1 if shared else 8)


def test_request_larger_than_the_queue_is_admitted_alone(repository: Repository) -> None:
    """More images than the queue's limit are admitted only if no other image is."""

    async def scenario() -> int:
        async with started(repository, queue_limit=2) as harness:
            answer = await harness.ask(5)
            harness.gate.shut()
            other = harness.ask(1)
            await until(lambda: harness.gate.images == 6)
            with pytest.raises(Overloaded):
                await harness.ask(5)
            harness.gate.open()
            await other
            return len(answer.results)

    assert asyncio.run(scenario()) == 5


def test_backbone_error_releases_the_capacity(repository: Repository) -> None:
    """An unexpected error of the backbone fails the call, and its capacity is released."""

    async def scenario() -> None:
        async with started(repository, queue_limit=4) as harness:
            harness.gate.broken = True
            with pytest.raises(EncodingError, match="the backbone is broken"):
                await harness.ask(4)
            harness.gate.broken = False
            await harness.check_permits(4)

    asyncio.run(scenario())


def test_aclose_closes_the_backbones(repository: Repository) -> None:
    """Threads of a GPU backbone end before the process."""

    async def scenario() -> GatedBackbone:
        async with started(repository) as harness:
            assert not harness.gate.closed
            return harness.gate

    assert asyncio.run(scenario()).closed


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("ask"), st.integers(1, 5)),
            st.tuples(st.just("hurry"), st.integers(1, 5)),
            st.tuples(st.just("cancel"), st.integers(0, 20)),
            st.tuples(st.just("gate"), st.integers(0, 1)),
            st.tuples(st.just("turn"), st.integers(1, 4)),
        ),
        max_size=30,
    )
)
def test_capacity_is_always_released(
    repository: Repository,
    runner: asyncio.Runner,
    steps: list[tuple[str, int]],
) -> None:
    """All capacity is available after any mix of answers, refusals, deadlines and cancellations."""

    async def scenario() -> None:
        async with started(repository, queue_limit=6) as harness:
            tasks: list[asyncio.Task[Classified]] = []
            given_up: set[asyncio.Task[Classified]] = set()
            for step, number in steps:
                if step == "ask":
                    tasks.append(harness.ask(number))
                elif step == "hurry":
                    tasks.append(harness.ask(number, budget=0.0))
                elif step == "cancel" and tasks:
                    task = tasks[number % len(tasks)]
                    if task.cancel():
                        given_up.add(task)
                elif step == "gate":
                    (harness.gate.open if number else harness.gate.shut)()
                elif step == "turn":
                    await asyncio.sleep(0.0005 * number)
            harness.gate.open()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            for task, end in zip(tasks, ends, strict=True):
                if isinstance(end, Classified):
                    assert [best(result) for result in end.results] == ["blue"] * len(end.results)
                elif isinstance(end, asyncio.CancelledError):
                    assert task in given_up
                else:
                    assert isinstance(end, Overloaded | DeadlinePassed)
            await harness.check_permits(6)

    runner.run(scenario())


def test_timings_are_consistent(repository: Repository) -> None:
    """Every stage takes some time, and the total includes queue and head."""

    async def scenario() -> Classified:
        async with started(repository) as harness:
            return await harness.ask(3)

    timings = asyncio.run(scenario()).timings
    assert min(timings.decode, timings.backbone, timings.head) > 0
    assert timings.queue >= 0
    assert timings.total >= timings.head + timings.queue
