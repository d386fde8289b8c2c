"""Benchmark of a GPU's throughput by batch size, for ONNX Runtime alone and for micro-batches.

    python tests/benchmarks/cuda.py [--provider cuda] [--repository DIRECTORY] [--largest 256]

Without a repository the default backbone is exported first. Images/s of ONNX Runtime alone:
``device``, with the input on the GPU (by IO binding; the ceiling), and ``host``, with the input in
page-locked host memory, as for micro-batches. ``micro-batches`` is the images/s of callers in
threads that submit decoded images as fast as they can; ``mean`` is the mean number of images in a
run, and ``lone ms`` the median time of one image alone right after. Decoding is not included. With
``--provider cpu`` it runs anywhere.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.store import Repository
from topwork.runtime.backend import Session, open_session, software_versions
from topwork.runtime.providers import Provider
from topwork.serving.encoders.backbone import Embedded
from topwork.serving.encoders.gpu_backbone import GpuBackbone, new_buffer, open_gpu_backbone
from topwork_trainer.backbones import DEFAULT, BackboneChoice
from topwork_trainer.backbones.prepare import prepare_backbone

SECONDS = 2.0
"""Duration of each measurement."""

CALLERS = 4
"""Threads that submit images."""


def main() -> None:
    """Measure and print a table for each backbone, then a JSON line for each row."""
    parser = argparse.ArgumentParser(description="Measure micro-batches beside bare ONNX Runtime.")
    parser.add_argument("--provider", default="cuda", choices=["cuda", "tensorrt", "cpu"])
    parser.add_argument("--repository", type=Path)
    parser.add_argument("--largest", type=int, default=256, help="images in a run, at most")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        repository = Repository(options.repository or Path(temporary))
        if options.repository is None:
            prepare_backbone(repository, BackboneChoice(name=DEFAULT))
        for info in repository.backbones():
            model = repository.backbone_model(info.digest)
            provider = cast("Provider", options.provider)
            session = open_session(model, output="embedding", provider=provider)
            _report(info, model, session, options.provider, options.largest)


def _report(
    info: BackboneInfo, model: bytes, session: Session, provider: str, largest: int
) -> None:
    sizes = [1 << power for power in range(largest.bit_length())]
    crop = info.image_spec.crop
    pixels = new_buffer(session, (sizes[-1], crop, crop, 3))
    pixels[:] = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint8)
    device = "cuda" if session.on_gpu else "cpu"
    rows = []
    for size in sizes:
        backbone = open_gpu_backbone(
            info, model, session, sizes=[smaller for smaller in sizes if smaller <= size]
        )
        throughput, mean = _micro_batches(backbone, pixels)
        row = {
            "batch": size,
            "device": _on_device(session, pixels[:size], device),
            "host": _on_host(session, pixels[:size]),
            "micro_batches": throughput,
            "mean": mean,
            "lone_ms": 1e3 * _lone(backbone, pixels),
        }
        backbone.close()
        rows.append(row)
    table = Table("batch", "device", "host", "micro-batches", "mean", "lone ms")
    table.title = f"{info.name}, {info.precision}, {provider}: images/s"
    for row in rows:
        table.add_row(*(f"{number:.4g}" for number in row.values()))
    Console().print(table)
    for row in rows:
        about = {"backbone": info.name, "precision": info.precision, "provider": provider}
        print(json.dumps({**about, **row, "versions": software_versions()}))


def _on_device(session: Session, pixels: NDArray[np.uint8], device: str) -> float:
    """Return images/s with input and output on the device, bound once."""
    bare: ort.InferenceSession = session._session
    binding = bare.io_binding()
    value = ort.OrtValue.ortvalue_from_numpy(pixels, device, 0)
    binding.bind_ortvalue_input(bare.get_inputs()[0].name, value)
    binding.bind_output("embedding", device)
    bare.run_with_iobinding(binding)
    start, runs = time.perf_counter(), 0
    while (now := time.perf_counter()) < start + SECONDS:
        bare.run_with_iobinding(binding)
        runs += 1
    return runs * len(pixels) / (now - start)


def _on_host(session: Session, pixels: NDArray[np.uint8]) -> float:
    """Return images/s with input and output in host memory."""
    session.run(pixels)
    start, runs = time.perf_counter(), 0
    while (now := time.perf_counter()) < start + SECONDS:
        session.run(pixels)
        runs += 1
    return runs * len(pixels) / (now - start)


def _micro_batches(backbone: GpuBackbone, pixels: NDArray[np.uint8]) -> tuple[float, float]:
    """Return images/s of callers in threads, and the mean number of images in a run."""
    answers: SimpleQueue[Embedded | Exception] = SimpleQueue()
    end = time.perf_counter() + SECONDS

    def call(offset: int) -> int:
        put = 0
        while time.perf_counter() < end:
            image = pixels[(offset + put) % len(pixels)]
            backbone.embed(image, answers.put, wide=False)
            put += 1
        return put

    start = time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as pool:
        count = sum(pool.map(call, range(CALLERS)))
    embedded = [answers.get() for _ in range(count)]
    seconds = time.perf_counter() - start
    runs = 0.0
    for answer in embedded:
        if isinstance(answer, Exception):
            raise answer
        assert answer.run is not None, "each image is in a micro-batch"
        runs += 1 / answer.run.images
    return count / seconds, count / runs


def _lone(backbone: GpuBackbone, pixels: NDArray[np.uint8]) -> float:
    """Return the median seconds of a lone image."""
    seconds = []
    for row in range(20):
        answered = threading.Event()
        start = time.perf_counter()
        backbone.embed(pixels[row % len(pixels)], lambda _, event=answered: event.set(), wide=False)  # type: ignore[misc]  # mypy cannot infer a lambda's default
        answered.wait()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
