"""Benchmark of decoding and scaling images of several sizes and formats.

    PYTHONPATH=tests python -m benchmarks.decoding [PHOTOS]

The images are mosaics of the photos in a folder of classes, or of noise. A new process measures
each file with one thread and prints a JSON line: milliseconds of CPU time of ``preprocess`` and of
scaling with each filter (the lower quartile of repeated runs), and MiB of peak memory of a first
``preprocess``. The SIMD code of OpenCV and of cykooz.resizer (fast_image_resize) is measured too if
they are installed. OpenCV's filters do not antialias, except INTER_AREA.
"""

from __future__ import annotations

import io
import itertools
import json
import multiprocessing
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from topwork.inputs.image import preprocess
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import InputLimits
from topwork.runtime import process

SIDE = 224
SPEC = PreprocessSpec(resize=SIDE, crop=SIDE)
Kind = tuple[tuple[int, int], str, str, dict[str, Any]]
KINDS: list[Kind] = [
    ((320, 256), "RGB", "JPEG", {}),
    ((500, 375), "RGB", "JPEG", {}),
    ((500, 375), "L", "JPEG", {}),
    ((1920, 1080), "RGB", "JPEG", {}),
    ((1920, 1080), "RGB", "PNG", {}),
    ((4000, 3000), "RGB", "JPEG", {}),
    ((4000, 3000), "RGB", "JPEG", {"progressive": True}),
    ((4000, 3000), "RGB", "PNG", {}),
    ((4000, 3000), "L", "PNG", {}),
    ((4000, 3000), "RGB", "WEBP", {}),
]


def main() -> None:
    """Measure all kinds of files, one after the other."""
    process.configure()  # by environment variables, which new processes read
    photos = sorted(Path(sys.argv[1]).glob("*/*"))[::10] if len(sys.argv) > 1 else []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        for (size, mode, form, options), content in zip(
            KINDS, map(partial(encoded, photos), KINDS), strict=True
        ):
            numbers = pool.submit(measure, content).result()
            name = f"{size[0]} x {size[1]} {mode} {' '.join([*options, form])}"
            print(json.dumps({"file": name, "KB": len(content) // 1000, **numbers}), flush=True)


def encoded(photos: list[Path], kind: Kind) -> bytes:
    """Return a mosaic of photos, or of soft noise, as a file."""
    (width, height), mode, form, options = kind
    image = Image.new("RGB", (width, height))
    tile, rng = (500, 375), np.random.default_rng(0)
    files = itertools.cycle(photos)
    for y, x in itertools.product(range(0, height, tile[1]), range(0, width, tile[0])):
        if photos:
            photo = Image.open(next(files)).convert("RGB")
        else:
            photo = Image.fromarray(rng.integers(0, 256, (75, 100, 3), dtype=np.uint8))
        image.paste(photo.resize(tile, Image.Resampling.BICUBIC), (x, y))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def measure(content: bytes) -> dict[str, float]:
    """Return the numbers of a file."""
    image = Image.open(io.BytesIO(content))
    warm = io.BytesIO()
    Image.new("RGB", (300, 300)).save(warm, image.format)
    run = partial(preprocess, spec=SPEC, limits=InputLimits(max_image_bytes=2**25))
    run(warm.getvalue())
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak()
    run(content)
    numbers = {"MiB": peak() - before, "preprocess": milliseconds(partial(run, content))}
    image.draft(None, (SIDE, SIDE))
    image.load()
    numbers |= {name: milliseconds(scale) for name, scale in filters(image).items()}
    return {name: round(number, 2) for name, number in numbers.items()}


def filters(image: Image.Image) -> dict[str, Callable[[], object]]:
    """Return functions that scale the central square of ``image``, by name."""
    side, size = min(image.size), (SIDE, SIDE)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    result: dict[str, Callable[[], object]] = {
        name: partial(image.resize, size, Image.Resampling[name.upper()], box, 3.0)
        for name in ("bicubic", "bilinear", "hamming", "box")
    }
    with suppress(ImportError):
        cv2: Any = import_module("cv2")
        cv2.setNumThreads(1)

        def opencv(flag: int) -> None:
            square = np.asarray(image)[int(top) : int(top) + side, int(left) : int(left) + side]
            cv2.resize(square, size, interpolation=flag)

        for name in ("INTER_LINEAR_EXACT", "INTER_LINEAR", "INTER_AREA"):
            result[name] = partial(opencv, getattr(cv2, name))
    with suppress(ImportError):
        simd: Any = import_module("cykooz_resizer")
        options, resizer = simd.ResizeOptions(), simd.Resizer()
        options.resize_alg = simd.ResizeAlg.convolution(simd.FilterType.catmull_rom)
        options.crop_box = simd.CropBox(left, top, side, side)
        result["cykooz"] = lambda: resizer.resize_pil(image, Image.new(image.mode, size), options)
    return result


def milliseconds(run: Callable[[], object]) -> float:
    """Return the lower quartile of the CPU time of repeated runs for half a second."""
    times: list[float] = []
    while len(times) < 5 or sum(times) < 0.5:
        start = time.thread_time()
        run()
        times.append(time.thread_time() - start)
    return 1000 * float(np.quantile(times, 0.25))


def peak() -> float:
    """Return the peak memory of this process in MiB."""
    (line,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) / 1024


if __name__ == "__main__":
    main()
