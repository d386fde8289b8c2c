"""Meshes of the five kinds of flowers.

Coordinates: x to the right, y down, z to the camera; the unit is the radius of the flower head.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

LABELS: tuple[str, ...] = ("daisy", "dandelion", "roses", "sunflowers", "tulips")

Array: TypeAlias = NDArray[np.floating]
Tints: TypeAlias = tuple[Array, Array]  # RGB of 0 to 1 at a petal's foot and tip

_GOLDEN_ANGLE = np.pi * (3 - 5**0.5)


class Mesh(NamedTuple):
    """Quads: corners (Q, 4, 3), and RGB colours (Q, 3) of 0 to 1."""

    corners: Array
    colours: Array


class _Shape(NamedTuple):
    """Shape of petals or of a leaf; angles in radians."""

    length: float
    width: float  # half of the greatest width
    lift: float  # slope at the foot: 0 in the plane of the flower, pi / 2 along its axis
    curl: float  # change of the slope from foot to tip
    bend: float  # below 1: curls near the foot; above 1: near the tip
    start: float  # distance from the axis to the foot
    belly: float  # position of the greatest width: 0 foot, 1 tip
    point: float  # 0.1 blunt, 1 pointed
    cup: float  # height of the rims above the midrib
    teeth: float  # depth of the notches
    spiral: float  # 0: a ring of equal petals; 1: a spiral, smaller and steeper inwards
    root: float  # brightness of the foot relative to the tip


# Each flower draws its values from these ranges; rows with a star are the leaves of a kind.
_SHAPES = """
            length  width   lift   curl      bend start belly  point cup    teeth spiral root
daisy       .8:.9   .08:.16 -.3:.5 -.9:.2    1    .15   .6:.75 .1:.4 -.3:.3 0     0      .75
dandelion   .9:1    .05:.06 -.3:.2 -.4:.3    1    .03   .7     .12   0      0     1      .8
roses       .85:1   .5:.65  .5:1.1 -1.6:-.7  2    .17   .7     .28   .1     0     1      .4
sepals      .7      .1      .4     -1        1    .05   .6     .5    0      0     0      .8
sunflowers  .6:.7   .09:.14 0:.5   -.6:.3    1    .35   .45    .6:1  .4     0     0      .75
tulips      1.3:1.6 .4:.53  .1     1.25:1.65 .45  .06   .5     .4:.8 0      0     .12    .6
daisy*      .8      .12     0      -.8       1    .05   .65    .3    0      .2    0      .8
dandelion*  1.8     .2      0      -.8       1    .05   .7     .4    0      .6    0      .8
roses*      .9      .28     0      -.6       1    .05   .45    .7    0      .1    0      .8
sunflowers* 1.1     .42     0      -.9       1    .05   .35    .7    -.2    0     0      .8
tulips*     2.6     .24     .3     -.7       1    .05   .4     .8    .5     0     0      .8
"""
COLOURS = {
    "white": (0.97, 0.97, 0.95),
    "cream": (0.97, 0.92, 0.72),
    "yellow": (0.99, 0.84, 0.1),
    "orange": (0.98, 0.58, 0.1),
    "russet": (0.65, 0.24, 0.08),
    "red": (0.84, 0.06, 0.09),
    "pink": (0.96, 0.6, 0.71),
    "magenta": (0.82, 0.18, 0.52),
    "violet": (0.58, 0.34, 0.74),
}
# Kinds share colours, so that colour alone does not separate them. A colour named twice is twice as
# likely.
_PALETTES = {
    "daisy": "white white white white white cream pink pink violet yellow",
    "dandelion": "yellow yellow yellow yellow orange",
    "roses": "red red red pink pink white cream yellow orange magenta violet",
    "sunflowers": "yellow yellow yellow yellow yellow orange orange russet",
    "tulips": "red red red yellow yellow pink magenta white orange violet cream",
}


class _Posture(NamedTuple):
    """Posture of a kind: tilt, number of leaves, stem."""

    tilt_range: tuple[float, float]  # radians: 0 faces the camera, pi / 2 faces up
    leaf_range: tuple[int, int]  # minimum, maximum
    depth: float  # from the middle of the head down to the stem
    stem: float  # width


_POSTURES = {
    "daisy": _Posture((0.0, 1.25), (0, 3), 0.05, 0.09),
    "dandelion": _Posture((0.0, 1.3), (0, 4), 0.05, 0.1),
    "roses": _Posture((0.1, 1.2), (1, 7), 0.3, 0.1),
    "sunflowers": _Posture((0.0, 0.9), (0, 5), 0.05, 0.15),
    "tulips": _Posture((0.5, 1.6), (0, 4), 0.75, 0.13),
}


def random_tints(rng: Generator, label: str) -> Tints:
    """Return random colours of a kind, for foot and tip."""
    names = _PALETTES[label].split()
    tip = np.array(COLOURS[rng.choice(names)]) * rng.uniform(0.88, 1.03)
    foot = tip * rng.uniform(0.8, 1.05)
    if chance(rng, 0.4):  # two-coloured
        foot = 0.3 * tip + 0.7 * np.array(COLOURS[rng.choice([*names, "yellow"])])
    return foot + rng.normal(0, 0.03, 3), tip + rng.normal(0, 0.03, 3)


def _shape(rng: Generator, name: str) -> _Shape:
    row = next(row for row in _SHAPES.splitlines() if row.startswith(f"{name} "))
    ranges = [[float(end) for end in cell.split(":")] for cell in row.split()[1:]]
    return _Shape(*(rng.uniform(ends[0], ends[-1]) for ends in ranges))


def plant(rng: Generator, label: str, tints: Tints, detail: float) -> Mesh:
    """Return flower, stem and leaves in camera coordinates, the head's middle at the origin."""
    tilts, leaves, depth, stem = _POSTURES[label]
    turn = _facing(rng.uniform(*tilts), rng.normal(0, 0.3))
    corners, colours = _head(rng, label, tints, detail)
    parts = [Mesh((corners - [0, 0, depth]) @ turn.T, colours)]
    # The stem leaves the head along its axis, then bends down and out of the picture.
    foot = -turn[:, 2] * depth
    knee = foot - turn[:, 2] * 1.5 + [0, 1.5, -0.2]
    ground = foot + np.array([rng.normal(0, 2.5), 16, -1])
    t = np.linspace(0, 1, 24)[:, None] ** 1.5
    line = foot * (1 - t) ** 2 + knee * 2 * t * (1 - t) + ground * t**2
    green = np.array([0.27, 0.5, 0.16]) * rng.uniform(0.75, 1.2) + rng.normal(0, 0.04, 3)
    lit = line + np.array([rng.uniform(-0.2, 0.2) * stem, 0, 0.02])
    parts += [_threads(line[:-1], line[1:], stem, green * 0.8)]
    parts += [_threads(lit[:-1], lit[1:], stem / 2, green)]
    for _ in range(rng.integers(leaves[0], leaves[1] + 1)):
        shape, way = _shape(rng, f"{label}*"), _facing(rng.normal(0.3, 0.5), rng.uniform(0, 6.3))
        corners, colours = _whorl(rng, shape, (green * 0.8, green), 1, (int(12 * detail), 5))
        at = line[rng.integers(5, 14)] - [0, 0, 0.1]
        parts.append(Mesh(corners @ way.T * rng.uniform(0.7, 1.3) + at, colours))
    return _joined(*parts)


def _facing(tilt: float, roll: float) -> Array:
    """Return the rotation (3, 3) that tilts a flower up by ``tilt`` and sideways by ``roll``."""
    c, s = np.cos(tilt), np.sin(tilt)
    upward = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    c, s = np.cos(roll), np.sin(roll)
    rotation: Array = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ upward
    return rotation


def _head(rng: Generator, label: str, tints: Tints, detail: float) -> Mesh:
    """Return the flower without stem, its axis along z, its foot at the origin."""
    shape = _shape(rng, label)
    fine, coarse = (int(10 * detail), int(7 * detail)), (int(9 * detail), 5)
    if label == "daisy":
        core, rim = np.array([0.97, 0.78, 0.12]), np.array([0.88, 0.55, 0.05])
        if chance(rng, 0.2):
            core, rim = np.array([0.35, 0.22, 0.12]), np.array([0.5, 0.22, 0.2])
        rings = [int(rng.integers(11, 22)) for _ in range(rng.integers(1, 3))]
        petals = [_whorl(rng, shape, tints, count, coarse) for count in rings]
        eye = _disc(rng, rng.uniform(0.22, 0.36), rng.uniform(0.08, 0.25), (core, rim), 150)
        return _joined(*petals, eye)
    if label == "dandelion":
        if chance(rng, 0.35):
            return _clock(rng)
        return _whorl(rng, shape, tints, int(rng.integers(180, 260)), (5, 2))
    if label == "roses":
        green = np.array([0.25, 0.45, 0.15])
        sepals = _whorl(rng, _shape(rng, "sepals"), (green, green), 5, coarse)
        return _joined(sepals, _whorl(rng, shape, tints, int(rng.integers(18, 32)), fine))
    if label == "sunflowers":
        rim = np.array([0.22, 0.13, 0.06]) * rng.uniform(0.7, 1.6)
        core = rim if chance(rng, 0.5) else np.array([0.45, 0.42, 0.14])
        eye = _disc(rng, shape.start * 1.15, rng.uniform(0.03, 0.14), (core, rim), 280)
        inner = shape._replace(lift=shape.lift + 0.3)
        rings = [int(rng.integers(14, 24)) for _ in range(2)]
        return _joined(
            _whorl(rng, shape, tints, rings[0], coarse),
            _whorl(rng, inner, tints, rings[1], coarse),
            eye,
        )
    if chance(rng, 0.3):  # wide open
        shape = shape._replace(curl=shape.curl - rng.uniform(0.2, 0.6))
    ends = rng.normal((0, 0, 0.75), 0.16, (6, 3))
    stamens = _threads(ends * 0.1, ends, 0.07, np.array([0.25, 0.2, 0.12]))
    return _joined(stamens, _whorl(rng, shape, tints, 6, (int(14 * detail), int(10 * detail))))


def _whorl(
    rng: Generator,
    shape: _Shape,
    tints: Tints,
    count: int,
    grid: tuple[int, int],
) -> Mesh:
    """Return ``count`` petals around the z axis, each with ``grid`` points (along, across)."""
    size, swing, light, lean = rng.normal(0, 0.07, (4, count, 1))
    inner = shape.spiral * np.linspace(1, 0, count)[:, None]
    u = (1 - np.cos(np.linspace(0, np.pi, grid[0]))) / 2  # foot to tip, denser at both ends
    v = np.linspace(-1, 1, grid[1])  # rim to rim
    scale = (1 + size) * (1 - 0.55 * inner)
    lift = shape.lift + (1.5 - shape.lift) * inner + lean
    slope = lift + shape.curl * (1 - inner) * u**shape.bend  # (count, U)
    step = np.diff(u, prepend=0) * shape.length * scale
    radius = shape.start * (1 - 0.8 * inner) + np.cumsum(np.cos(slope) * step, axis=1)
    height = np.cumsum(np.sin(slope) * step, axis=1)
    outline = u ** (shape.point * shape.belly / (1 - shape.belly)) * (1 - u) ** shape.point
    outline = outline / outline.max() * (1 - shape.teeth * (u * 5 % 1))
    half = (shape.width * scale * outline)[..., None]  # (count, U, 1)
    # A petal that is wide for its distance from the axis wraps around it, which forms a cup.
    spread = half / np.maximum(radius, 0.25 * shape.length)[..., None]
    turn = _GOLDEN_ANGLE if shape.spiral == 1 else 2 * np.pi / count
    middle = rng.uniform(0, 2 * np.pi) + np.arange(count)[:, None] * turn + 2 * swing
    angle = middle[..., None] + v * spread  # (count, U, V)
    waves = 0.06 * shape.width * np.sin(4 * v + rng.uniform(0, 6, (count, 1, 1))) * u[:, None] ** 2
    # In a ring one rim covers the next petal and the other is under the previous, like tiles.
    rise = half * (shape.cup * v**2 + 0.3 * (1 - shape.spiral) * v) + waves
    away = radius[..., None] - np.sin(slope)[..., None] * rise
    upward = height[..., None] + np.cos(slope)[..., None] * rise
    points = np.stack((away * np.cos(angle), away * np.sin(angle), upward), axis=-1)
    streaks = 1 + rng.normal(0, 0.025, (count, 1, grid[1])) + 0.08 * (np.abs(v) - 0.5)
    tone = np.minimum(shape.root + (1 - shape.root) * u * 1.8, 1)[:, None] * streaks
    tone = tone * (1 + light[..., None])
    blend = u[:, None, None] ** 1.3
    colours = (tints[0] * (1 - blend) + tints[1] * blend) * tone[..., None]
    corners = (points[:, :-1, :-1], points[:, 1:, :-1], points[:, 1:, 1:], points[:, :-1, 1:])
    return Mesh(np.stack(corners, axis=3).reshape(-1, 4, 3), colours[:, :-1, :-1].reshape(-1, 3))


def _disc(rng: Generator, radius: float, dome: float, tints: Tints, count: int) -> Mesh:
    """Return the eye of a flower: florets in a sunflower spiral, coloured from core to rim."""
    t = np.sqrt((np.arange(count) + 0.5) / count)[:, None]
    angle = np.arange(count)[:, None] * _GOLDEN_ANGLE
    size = 1.7 * radius / count**0.5
    around = np.arange(4) * np.pi / 2 + angle
    x = t * radius * np.cos(angle) + size * np.cos(around)
    y = t * radius * np.sin(angle) + size * np.sin(around)
    z = dome * (1 - t**2) + size * rng.uniform(0.2, 1.2, (count, 4))
    colours = tints[0] * (1 - t**2) + tints[1] * t**2
    return Mesh(np.stack((x, y, z), axis=-1), colours * rng.uniform(0.75, 1.2, (count, 1)))


def _clock(rng: Generator) -> Mesh:
    """Return a dandelion's ball of seeds, each on a stalk under a parasol; some may be missing."""
    count = int(rng.integers(90, 150))
    z, angle = np.linspace(-1, 1, count), np.arange(count) * _GOLDEN_ANGLE
    flat = np.sqrt(1 - z**2)
    ways = np.stack((flat * np.cos(angle), flat * np.sin(angle), z), axis=-1)
    ways += rng.normal(0, 0.06, ways.shape)
    if chance(rng, 0.25):
        gone = rng.normal(size=3)
        ways = ways[ways @ gone < rng.uniform(0.1, 0.8) * lengths(gone)]
    white = np.array([0.97, 0.97, 0.95]) * rng.uniform(0.85, 1)
    tips = np.repeat(ways * 0.95, 9, axis=0)
    return _joined(
        _threads(ways * 0.1, ways * 0.27, 0.035, np.array([0.5, 0.36, 0.2])),
        _threads(ways * 0.27, ways * 0.74, 0.01, white * 0.8),
        _threads(tips * 0.78, tips + rng.normal(0, 0.13, tips.shape), 0.012, white),
    )


def _threads(start: Array, end: Array, width: float, colour: Array) -> Mesh:
    """Return a flat strip from each start (n, 3) to its end (n, 3)."""
    across = (end - start) @ np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 0]])
    across = across / (lengths(across) + 1e-6) * width / 2
    corners = np.stack((start - across, start + across, end + across, end - across), axis=1)
    return Mesh(corners, np.broadcast_to(colour, start.shape))


def lengths(vectors: Array) -> Array:
    """Return the lengths (..., 1) of vectors (..., 3)."""
    norms: Array = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return norms


def _joined(*meshes: Mesh) -> Mesh:
    corners, colours = zip(*meshes, strict=True)
    return Mesh(np.concatenate(corners), np.concatenate(colours))


def chance(rng: Generator, share: float) -> bool:
    """Return True with probability ``share``."""
    return bool(rng.random() < share)
