"""Pictures that the soak uploads, and its initial models."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image
from support import tiny
from support.pictures import COLOURS, encode, pictures

from topwork.bundle.exemplars import Exemplars, make
from topwork.bundle.store import Repository

MODELS = ("colours", "hues", "shades")
FIRST = ("amber", "blue", "crimson", "green")
FITTED = 20
"""Pictures of each initial label of every model."""
EACH = 60
JUNK = b"not a picture"

Pairs = frozenset[tuple[bytes, str]]
"""Training set of a revision: image digests with labels."""


class Pool:
    """Pictures by name, such as blue-7, with their exemplars and digests."""

    def __init__(self) -> None:
        by_colour = {colour: pictures(colour, EACH) for colour in COLOURS}
        self.contents = {
            f"{colour}-{number}": content
            for colour, contents in by_colour.items()
            for number, content in enumerate(contents)
        }
        self._exemplars = tiny.embed_pictures(by_colour)
        self._rows = {name: row for row, name in enumerate(self._exemplars.names)}
        self.plain = {
            colour: encode(Image.fromarray(np.full((32, 40, 3), rgb, np.uint8)))
            for colour, rgb in COLOURS.items()
        }
        """A picture of each colour without noise, which every head predicts correctly."""

    def draw(self, rng: random.Random, colour: str, count: int) -> tuple[str, ...]:
        """Return the names of ``count`` random pictures of a colour."""
        return tuple(f"{colour}-{number}" for number in rng.sample(range(EACH), count))

    def files(self, names: tuple[str, ...]) -> list[tuple[str, bytes]]:
        """Return names with file contents for an upload."""
        return [(name, self.contents.get(name, JUNK)) for name in names]

    def digest(self, name: str) -> bytes:
        """Return the digest of a picture's pixels."""
        return bytes(self._exemplars.digests[self._rows[name]])

    def first(self) -> Pairs:
        """Return the initial training set of every model."""
        return frozenset(
            (self.digest(f"{label}-{number}"), label) for label in FIRST for number in range(FITTED)
        )

    def exemplars(self, pairs: Pairs) -> Exemplars:
        """Return the exemplars of one fit on these images."""
        names = {self.digest(name): name for name in self.contents}
        chosen = sorted(pairs)
        rows = [self._rows[names[digest]] for digest, _ in chosen]
        return make(
            self._exemplars.embeddings[rows],
            self._exemplars.digests[rows],
            self._exemplars.fingerprints[rows],
            [label for _, label in chosen],
            contents=self._exemplars.contents[rows],
        )

    def fill(self, made: Repository) -> None:
        """Publish all models in a new repository."""
        for model in MODELS:
            tiny.publish(made, model, self.exemplars(self.first()))


def colour_of(label: str) -> str:
    """Return the colour of a label's pictures: "blue" for the renamed label "blue.7"."""
    return label.partition(".")[0]
