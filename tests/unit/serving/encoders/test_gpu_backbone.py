"""GPU backbone: embeddings of micro-batches, and the end of its thread."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from support import tiny

from topwork.errors import NotReady
from topwork.runtime.agreement import is_off
from topwork.runtime.backend import Session, open_session
from topwork.serving.encoders import gpu_backbone
from topwork.serving.encoders.backbone import Embedded
from topwork.serving.encoders.gpu_backbone import open_gpu_backbone


def resolve(future: Future[Embedded], answer: Embedded | Exception) -> None:
    """Set the result of a future."""
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def images(count: int) -> NDArray[np.uint8]:
    """Return random images of the tiny backbone's size."""
    return np.random.default_rng(1).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def test_micro_batches_give_the_embeddings_of_single_images() -> None:
    """In ONNX Runtime, embeddings of micro-batches equal those of single images."""
    model = tiny.backbone_model()
    session = open_session(model, output="embedding")
    backbone = open_gpu_backbone(tiny.backbone_info(model), model, session, sizes=(1, 2, 4, 8))
    assert backbone.info.name == "tiny"
    pictures = images(100)
    futures: list[Future[Embedded]] = [Future() for _ in pictures]

    def call(number: int) -> None:
        backbone.embed(pictures[number], partial(resolve, futures[number]), wide=False)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(len(pictures))))
    found = np.stack([future.result(timeout=30).embedding for future in futures])
    np.testing.assert_allclose(found, session.run(pictures), rtol=1e-6)
    backbone.close()


def test_waiting_images_share_a_run() -> None:
    """Images that wait for a run form a micro-batch of the largest size."""
    begun, may_end = threading.Event(), threading.Event()
    may_end.set()  # the warm-up
    model = tiny.backbone_model()

    class Slow:
        on_gpu = False
        provider = "CUDAExecutionProvider"
        uses = staticmethod(lambda _: False)

        @staticmethod
        def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
            begun.set()
            may_end.wait(30)
            return np.zeros((len(batch), 4), dtype=np.float32)

    backbone = open_gpu_backbone(tiny.backbone_info(model), model, Slow(), sizes=(1, 2, 4))  # type: ignore[arg-type]  # all of a Session that is used
    begun.clear()
    futures: list[Future[Embedded]] = [Future() for _ in range(5)]
    may_end.clear()
    backbone.embed(images(1)[0], partial(resolve, futures[0]), wide=False)
    assert begun.wait(30)
    for image, future in zip(images(4), futures[1:], strict=True):
        backbone.embed(image, partial(resolve, future), wide=False)
    may_end.set()
    runs = [future.result(timeout=30).run for future in futures]
    assert [run.images for run in runs if run is not None] == [1, 4, 4, 4, 4]
    backbone.close()


@pytest.mark.parametrize("bad", [1, 2, 4])
def test_every_batch_size_is_checked(bad: int) -> None:
    """A size whose runs give other embeddings is found, whatever the others give."""
    model = tiny.backbone_model()
    session = open_session(model, output="embedding")

    class Wrong:
        on_gpu = False
        provider = "CUDAExecutionProvider"
        uses = staticmethod(lambda _: False)

        @staticmethod
        def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
            found = session.run(batch)
            return found[:, ::-1] if len(batch) == bad else found

    wrong: Session = Wrong()  # type: ignore[assignment]  # all of a Session that is used
    info = tiny.quantised_info(model)
    for tried, off in ((session, False), (wrong, True)):
        backbone = open_gpu_backbone(info, model, tried, sizes=(1, 2, 4))
        backbone.close()
        assert backbone.check.provider == tried.provider
        assert is_off(backbone.check.agreement) is off


def test_garbage_collected_backbone_ends_its_thread() -> None:
    """Hot reloads do not accumulate threads."""
    model = tiny.backbone_model()
    session = open_session(model, output="embedding")
    backbone = open_gpu_backbone(tiny.backbone_info(model), model, session, sizes=(1,))
    thread = backbone._batcher._thread
    assert thread is not None
    assert thread.is_alive()
    del backbone
    thread.join(timeout=30)
    assert not thread.is_alive()


def test_backbone_works_without_page_locked_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that refuses page-locked memory costs only speed."""

    def refuse(shape: tuple[int, ...]) -> NDArray[np.uint8]:
        raise OSError(f"no memory for {shape}")

    class OnGpu:
        on_gpu = True
        provider = "CUDAExecutionProvider"
        uses = staticmethod(lambda _: False)
        run = staticmethod(open_session(tiny.backbone_model(), output="embedding").run)

    monkeypatch.setattr(gpu_backbone, "page_locked", refuse)
    info = tiny.backbone_info(tiny.backbone_model())
    backbone = open_gpu_backbone(info, b"", OnGpu(), sizes=(1, 2))  # type: ignore[arg-type]  # all of a Session that is used
    future: Future[Embedded] = Future()
    backbone.embed(images(1)[0], partial(resolve, future), wide=False)
    expected = OnGpu.run(images(1))[0]
    np.testing.assert_allclose(future.result(timeout=30).embedding, expected, rtol=1e-6)
    backbone.close()


@pytest.mark.cuda
def test_gpu_matches_the_cpu() -> None:
    """Micro-batches on CUDA agree with single images on the CPU."""
    model = tiny.backbone_model()
    try:
        session = open_session(model, output="embedding", provider="cuda")
    except NotReady as error:
        pytest.skip(str(error))
    backbone = open_gpu_backbone(tiny.backbone_info(model), model, session)
    pictures = images(300)
    futures: list[Future[Embedded]] = [Future() for _ in pictures]
    for image, future in zip(pictures, futures, strict=True):
        backbone.embed(image, partial(resolve, future), wide=False)
    found = np.stack([future.result(timeout=30).embedding for future in futures])
    alone = open_session(model, output="embedding").run(pictures)
    np.testing.assert_allclose(found, alone, rtol=1e-4)
    runs = {future.result().run for future in futures}
    assert len(runs) < len(pictures)
    assert None not in runs
    backbone.close()
