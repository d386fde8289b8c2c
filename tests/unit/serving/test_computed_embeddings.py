"""Classifier of embeddings that clients compute: the same queue and errors, and no encoder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from support import spaces, tiny
from support.pictures import picture

from topwork.bundle.store import Repository
from topwork.errors import ImageError, InvalidInput
from topwork.inputs.embeddings import SentEmbedding
from topwork.limits import DEFAULT_LIMITS
from topwork.serving.classifier import Classifier
from topwork.serving.classify_batch import ImageAnswer
from topwork.serving.encoders.threads import ThreadEncoder
from topwork.serving.registry import Registry
from topwork.telemetry import Telemetry

ROWS = {label: spaces.rows(label, 3, first=40) for label in "abc"}


@asynccontextmanager
async def started(repository: Repository) -> AsyncIterator[Classifier]:
    """Yield a classifier with one core."""
    encoder = ThreadEncoder(provider="cpu", cores=1, limits=DEFAULT_LIMITS)
    registry = Registry(repository, encoder, telemetry=Telemetry())
    classifier = Classifier(
        registry,
        encoder,
        limits=DEFAULT_LIMITS,
        cores=1,
        queue_limit=512,
        telemetry=Telemetry(),
    )
    await classifier.start()
    try:
        await registry.start()
        yield classifier
    finally:
        await classifier.aclose()
        await registry.aclose()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository with a model of embeddings and one of images."""
    made = tiny.repository(tmp_path_factory.mktemp("computed") / "repository")
    spaces.publish(made, "points", spaces.exemplars({x: [*spaces.rows(x, 15)] for x in "abc"}))
    return made


def best(result: ImageAnswer | ImageError) -> str:
    """Return the most probable label, or the message of the error."""
    return str(result) if isinstance(result, ImageError) else result.predictions[0].label


def test_results_are_in_order_with_the_errors_between(repository: Repository) -> None:
    """A vector that does not fit is an error with its position; the others are answered."""
    nan = np.full(12, np.nan, np.float32)
    inputs = [ROWS["b"][0], nan, ROWS["a"][1], ROWS["c"][0][:5]]

    async def scenario() -> None:
        async with started(repository) as classifier:
            found = await classifier.classify("points", [*map(SentEmbedding, inputs)], budget=9)
        assert [best(found.results[place]) for place in (0, 2)] == ["b", "a"]
        for place, text in ((1, "the value nan at 0"), (3, "has 5 numbers")):
            error = found.results[place]
            assert isinstance(error, ImageError)
            assert (error.field, error.reason) == (f"images[{place}]", "EMBEDDING_INVALID")
            assert text in str(error)

    asyncio.run(scenario())


def test_many_concurrent_calls_get_their_own_answers(repository: Repository) -> None:
    """Calls of several callers, among images, with full batches and cancelled calls."""
    many = 100

    async def scenario() -> None:
        async with started(repository) as classifier:

            async def ask(label: str, number: int) -> None:
                rows = [SentEmbedding(ROWS[label][number % 3])] * (many if number == 7 else 2)
                found = await classifier.classify("points", rows, budget=30, caller=label)
                assert {best(result) for result in found.results} == {label}

            async def show(label: str) -> None:
                found = await classifier.classify("colours", [picture(label, 50)], budget=30)
                assert best(found.results[0]) == label

            calls = [ask(label, number) for number in range(9) for label in "abc"]
            calls += [show(label) for label in ("amber", "blue", "green") for _ in range(5)]
            tasks = [asyncio.create_task(call) for call in calls]
            dropped = asyncio.create_task(ask("a", 0))
            await asyncio.sleep(0)
            dropped.cancel()
            await asyncio.gather(*tasks)
            assert classifier.stalled_seconds() == 0

    asyncio.run(scenario())


def test_large_batches_are_converted_in_a_thread(tmp_path: Path) -> None:
    """The answers are those of small ones."""
    wide = [np.repeat(ROWS["b"][0], 1)] * 256

    async def scenario() -> None:
        async with started(spaces.repository(tmp_path)) as classifier:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("topwork.serving.classifier.LOOP_BYTES", 100)
                found = await classifier.classify("points", [*map(SentEmbedding, wide)])
            (one, *_) = (await classifier.classify("points", [SentEmbedding(wide[0])])).results
            assert found.results == (one,) * 256

    asyncio.run(scenario())


def test_time_of_images_does_not_refuse_embeddings(repository: Repository) -> None:
    """They need no encoder: a short budget is enough, even for a full batch while others wait."""

    async def scenario() -> None:
        async with started(repository) as classifier:
            slow = asyncio.create_task(classifier.classify("colours", [picture("blue", 1)] * 200))
            await asyncio.sleep(0)
            rows = [SentEmbedding(ROWS["c"][0])] * 200
            found = await classifier.infer("points", rows, budget=20, caller="other")
            assert found.labels[int(found.probabilities[0].argmax())] == "c"
            assert np.array_equal(found.embeddings[0], ROWS["c"][0])
            await slow

    asyncio.run(scenario())


def test_other_kind_fails_the_request_with_both_names(repository: Repository) -> None:
    """Also one among others; capacity is released."""

    async def scenario() -> None:
        async with started(repository) as classifier:
            cases: list[tuple[str, list[bytes | SentEmbedding], str]] = [
                ("points", [b"x"], "'points' takes inputs of the kind 'embedding', not 'image'"),
                ("colours", [SentEmbedding(ROWS["a"][0])], "kind 'image', not 'embedding'"),
                ("colours", [picture("blue", 1), SentEmbedding(ROWS["a"][0])], "not 'embedding'"),
            ]
            for model, inputs, text in cases:
                for _ in range(600):
                    with pytest.raises(InvalidInput, match=text) as caught:
                        await classifier.classify(model, inputs)
                assert caught.value.reason == "INPUT_KIND"

    asyncio.run(scenario())
