"""Measure the inner pieces of Classify, one by one: ``pytest tests/benchmarks/pieces.py``."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture
from support import tiny
from support.pictures import encode

from topwork.inputs.image import preprocess
from topwork.inputs.preprocess import PreprocessSpec
from topwork.rpc.convert.answers import to_classify_response
from topwork.serving.classify_batch import Classified, ImageAnswer, LabelProbability, Timings
from topwork.serving.fair_queue import FairQueue, Flow
from topwork.serving.head import HeadLoader

WIDTH, LABELS = 1280, 5


@pytest.mark.parametrize("size", [(320, 240), (1920, 1080)], ids=["320x240", "1920x1080"])
def test_decode(benchmark: BenchmarkFixture, size: tuple[int, int]) -> None:
    """A JPEG becomes the 224 x 224 pixels of the default backbone."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    photo = encode(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC), "JPEG")
    spec = PreprocessSpec(resize=256, crop=224)
    assert benchmark(preprocess, photo, spec).shape == (224, 224, 3)


@pytest.mark.parametrize("rows", [1, 16])
def test_head(benchmark: BenchmarkFixture, rows: int) -> None:
    """A linear head answers for a request's embeddings."""
    rng = np.random.default_rng(0)
    graph = tiny.linear_head(
        rng.normal(size=(LABELS, WIDTH)).astype(np.float32), np.zeros(LABELS, np.float32)
    )
    head = HeadLoader().load(graph, width=WIDTH, labels=LABELS, unknown=False)
    embeddings = rng.normal(size=(rows, WIDTH)).astype(np.float32)
    assert benchmark(head.run, embeddings)[0].shape == (rows, LABELS)


@pytest.mark.parametrize("waiting", [1, 512])
def test_queue(benchmark: BenchmarkFixture, waiting: int) -> None:
    """An image comes and another one goes, while others of as many callers wait."""
    queue: FairQueue[int] = FairQueue()
    for number in range(waiting):
        queue.push(number, 1, deadline=float(number), flow=Flow())

    def through() -> object:
        queue.push(0, 1, deadline=0.0, flow=Flow())
        return queue.pop()

    assert benchmark(through) is not None


@pytest.mark.parametrize("images", [1, 16])
def test_response(benchmark: BenchmarkFixture, images: int) -> None:
    """An answer becomes the bytes that are sent."""
    answer = ImageAnswer(
        predictions=tuple(
            LabelProbability(label=f"label {at}", probability=0.2) for at in range(LABELS)
        ),
        unknown_probability=0.1,
        is_unknown=False,
    )
    timings = Timings(decode=1e-3, queue=1e-3, backbone=2e-3, head=1e-4, total=4e-3)
    classified = Classified(revision=1, results=(answer,) * images, timings=timings)
    assert benchmark(lambda: to_classify_response(classified).SerializeToString())
