"""Renderer of the demo data set: five kinds of flowers in varied light.

No picture is a photo. Petals and leaves are sheets of quads, lit by one lamp and painted back to
front over an out-of-focus backdrop; camera effects follow (exposure, vignette, blur, grain). A
picture is a function of (seed, label, index), bit by bit on the same numpy, Pillow and machine.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from topwork_trainer.demo import flowers
from topwork_trainer.demo.flowers import LABELS, Array, Mesh, chance

_POOL_FROM = 60  # pictures; for fewer, starting processes takes longer than drawing


def render(label: str, index: int, *, seed: int = 0) -> Image.Image:
    """Return picture number ``index`` (>= 0) of a label as RGB, its short side 180 to 420 pixels.

    Raises ValueError if the label is not in LABELS.
    """
    rng = np.random.default_rng(_key(label, index, seed))
    short = int(rng.integers(180, 421))
    long = int(short * rng.uniform(1.05, 1.5))
    width, height = (short, long) if chance(rng, 0.4) else (long, short)
    lamp = np.array([rng.normal(0, 0.6), -rng.uniform(0.2, 1.2), rng.uniform(0.5, 1.2)])

    # The backdrop is out of focus: a quarter of the size is enough and cheap.
    scene = _backdrop(rng, width // 4 + 1, height // 4 + 1)
    if chance(rng, 0.5):
        behind = label if chance(rng, 0.7) else LABELS[rng.integers(len(LABELS))]
        _bunch(rng, scene, behind, lamp, rng.uniform(0.08, 0.2, rng.integers(1, 5)))
        scene = scene.filter(ImageFilter.GaussianBlur(rng.uniform(1.0, 2.5)))
    # Drawing at twice the size and halving it smooths ImageDraw's jagged edges.
    canvas = scene.resize((width * 2, height * 2), Image.Resampling.BILINEAR)
    if chance(rng, 0.35):
        _grass(rng, canvas, int(rng.integers(5, 40)), 0.008)
    count = int(rng.choice([1, 2, 3, 5], p=[0.62, 0.16, 0.12, 0.10]))
    low, high = (0.2, 0.58) if count == 1 else (0.1, 0.42 / count**0.4)
    _bunch(rng, canvas, label, lamp, rng.uniform(low, high, count))
    picture = canvas.reduce(2)
    if chance(rng, 0.2):
        _occlude(rng, picture)
    return _develop(rng, picture)


def write_dataset(
    directory: Path,
    *,
    images_per_label: int = 120,
    seed: int = 0,
    on_done: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Write <directory>/<label>/<label>-00000.jpg ... and RENDERED.txt; return the pictures' paths.

    Uses all cores of this process. Calls ``on_done`` in this process, once per picture.
    """
    jobs = [(label, index) for label in LABELS for index in range(images_per_label)]
    paths = [directory / label / f"{label}-{index:05d}.jpg" for label, index in jobs]
    for label in LABELS:
        (directory / label).mkdir(parents=True, exist_ok=True)
    (directory / "RENDERED.txt").write_text(
        f"The {len(paths)} pictures in these folders are rendered, they are not photos.\n"
        f"Drawn by: topwork_trainer.demo.render\nSeed: {seed}\n"
        f"Pictures per label: {images_per_label}\n",
        encoding="utf-8",
    )
    labels, indices = [label for label, _ in jobs], [index for _, index in jobs]
    work = (paths, labels, indices, itertools.repeat(seed))
    cores = len(os.sched_getaffinity(0))
    if cores == 1 or len(paths) < _POOL_FROM:
        for _ in map(_write, *work):
            on_done()
        return paths
    # Spawn, not fork: the caller may run threads, and a forked child inherits their locks.
    with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map(_write, *work):
            on_done()
    return paths


def _write(path: Path, label: str, index: int, seed: int) -> None:
    """Write a picture as JPEG of quality 70 to 92."""
    quality = int(np.random.default_rng([*_key(label, index, seed), 1]).integers(70, 93))
    render(label, index, seed=seed).save(path, "JPEG", quality=quality)


def _key(label: str, index: int, seed: int) -> list[int]:
    """Return the seed of a picture's random numbers, which must depend on nothing else."""
    if label not in LABELS:
        raise ValueError(f"no flower is called {label!r}; the labels are {', '.join(LABELS)}")
    return [seed, LABELS.index(label), index]


# Sizes are shares of the canvas, so that a scene looks the same at any resolution.

# RGB at the top (far), at the bottom (near), and of the blobs between.
_SCENES = (
    ((85, 120, 60), (50, 80, 35), ((60, 105, 40), (115, 155, 75), (30, 55, 25))),  # foliage
    ((165, 190, 120), (95, 140, 55), ((125, 165, 70), (200, 200, 100), (80, 115, 55))),  # meadow
    ((105, 160, 225), (195, 215, 235), ((225, 232, 240), (150, 190, 230), (100, 145, 80))),  # sky
    ((135, 112, 88), (95, 75, 55), ((150, 125, 98), (80, 62, 46), (95, 115, 60))),  # soil
    ((30, 35, 34), (18, 24, 19), ((38, 50, 36), (50, 42, 45), (14, 17, 15))),  # shade
    ((215, 208, 196), (190, 180, 168), ((222, 216, 206), (180, 172, 160), (200, 190, 178))),  # wall
)


def _backdrop(rng: Generator, width: int, height: int) -> Image.Image:
    """Return an out-of-focus scene: a gradient, coloured blobs, sometimes grass."""
    far, near, blobs = _SCENES[rng.integers(len(_SCENES))]
    ramp = np.linspace(0, 1, height)[:, None, None] ** rng.uniform(0.5, 2.0)
    rows = np.array(far) * (1 - ramp) + np.array(near) * ramp
    image = Image.fromarray(np.repeat(rows, width, axis=1).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(8, 90)):
        x, y, reach = rng.random() * width, rng.random() * height, rng.uniform(0.02, 0.14) * width
        colour = np.array(blobs[rng.integers(len(blobs))]) * rng.uniform(0.8, 1.15)
        if chance(rng, 0.05):  # a distant flower
            colour = (
                np.array(list(flowers.COLOURS.values())[rng.integers(len(flowers.COLOURS))]) * 200
            )
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=_ink(colour))
    if chance(rng, 0.5):
        _grass(rng, image, int(rng.integers(10, 60)), 0.01)
    return image.filter(ImageFilter.GaussianBlur(float(rng.choice([2.0, 3.5, 6.0]))))


def _grass(rng: Generator, canvas: Image.Image, count: int, breadth: float) -> None:
    """Paint blades of grass that grow from the lower edge."""
    draw, (width, height) = ImageDraw.Draw(canvas), canvas.size
    green = np.array([90, 130, 45]) * rng.uniform(0.6, 1.25)
    for _ in range(count):
        x, top = rng.random() * width, rng.uniform(0.2, 0.95) * height
        half, lean = width * breadth * rng.uniform(0.5, 1.6), width * rng.normal(0, 0.15)
        knee, middle = x + lean * 0.3, (top + height) / 2
        left, right = ((x - half, height), (knee - half, middle)), ((knee + half, middle),)
        outline = [*left, (x + lean, top), *right, (x + half, height)]
        draw.polygon(outline, fill=(*_ink(green * rng.uniform(0.7, 1.3)), 255))


def _occlude(rng: Generator, picture: Image.Image) -> None:
    """Paint blurred blades of grass between flower and camera."""
    layer = Image.new("RGBA", (picture.width // 4 + 1, picture.height // 4 + 1), (90, 130, 45, 0))
    _grass(rng, layer, int(rng.integers(1, 5)), 0.04)
    layer = layer.filter(ImageFilter.GaussianBlur(rng.uniform(0.8, 2.5)))
    layer = layer.resize(picture.size, Image.Resampling.BILINEAR)
    picture.paste(layer, (0, 0), layer)


def _develop(rng: Generator, picture: Image.Image) -> Image.Image:
    """Return the picture with camera effects: focus, saturation, exposure, vignette, grain."""
    if chance(rng, 0.35):
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.5)))
    picture = ImageEnhance.Color(picture).enhance(rng.uniform(0.65, 1.25))
    width, height = picture.size
    x, y = np.linspace(-1, 1, width)[None], np.linspace(-1, 1, height)[:, None]
    light = np.exp(rng.normal(0.1, 0.16)) * (1 - rng.uniform(0, 0.22) * (x * x + y * y))
    grain = rng.standard_normal((height, width), dtype=np.float32) * rng.uniform(0, 7)
    warmth = rng.normal(0, 0.06)
    planes = (
        np.clip(np.asarray(plane) * (light * gain) + grain, 0, 255).astype(np.uint8)
        for plane, gain in zip(picture.split(), (1 + warmth, 1, 1 - warmth), strict=True)
    )
    return Image.merge("RGB", [Image.fromarray(plane) for plane in planes])


def _bunch(rng: Generator, canvas: Image.Image, label: str, lamp: Array, radii: Array) -> None:
    """Paint a flower of one kind per radius, each a share of the canvas's short side."""
    tints, spread = flowers.random_tints(rng, label), 0.13 if len(radii) == 1 else 0.26
    for radius in np.sort(radii) * min(canvas.size):
        if chance(rng, 0.3):
            tints = flowers.random_tints(rng, label)
        corners, colours = flowers.plant(rng, label, tints, detail=np.clip(radius / 110, 0.75, 1.7))
        place = np.clip(rng.normal((0.5, 0.45), spread), 0.05, 0.95) * canvas.size
        _paint(canvas, Mesh(corners * radius + [*place, 0], colours), lamp)


def _paint(canvas: Image.Image, mesh: Mesh, lamp: Array) -> None:
    """Paint the quads of a mesh back to front, lit from the direction of the lamp."""
    corners, colours = mesh
    normals = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    normals *= np.sign(normals[:, 2:])  # turn to the camera, which sees either side of a petal
    light = np.clip(
        normals @ lamp / (flowers.lengths(normals)[:, 0] * flowers.lengths(lamp) + 1e-9), 0, 1
    )
    inks = np.clip(colours * (0.62 + 0.48 * light[:, None]) * 255, 0, 255).astype(int)
    order = np.argsort(corners[:, :, 2].sum(axis=1), kind="stable")
    outlines = corners[order, :, :2].reshape(-1, 8).tolist()
    draw = ImageDraw.Draw(canvas)
    for outline, ink in zip(outlines, (inks[order] @ [1, 1 << 8, 1 << 16]).tolist(), strict=True):
        draw.polygon(outline, fill=ink)


def _ink(colour: Array) -> tuple[int, int, int]:
    red, green, blue = np.clip(colour, 0, 255).astype(int).tolist()
    return red, green, blue
