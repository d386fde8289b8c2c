"""Fuzz targets, run on their seeds and on mutations of the seeds.

``make fuzz`` searches further, guided by coverage; these tests show that the targets still work.
"""

from __future__ import annotations

import random

import pytest
from fuzz.targets import TARGETS

MUTATIONS = 60
"""Mutated inputs per target."""


def mutated(seed: bytes, rng: random.Random) -> bytes:
    """Return ``seed`` with parts deleted, repeated or replaced."""
    content = bytearray(seed)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content) + 1)
        match rng.randrange(3):
            case 0:
                content[at : at + rng.randrange(8)] = rng.randbytes(rng.randrange(8))
            case 1:
                content[at:at] = content[at : at + rng.randrange(64)]
            case _:
                del content[at : at + rng.randrange(64)]
    return bytes(content)


@pytest.mark.parametrize("name", TARGETS)
def test_target_raises_only_declared_errors(name: str) -> None:
    """No empty, valid or mutated input raises an error that the target does not declare."""
    target = TARGETS[name]
    seeds = target.seeds()
    rng = random.Random(name)
    target.run(b"")
    for seed in seeds:
        assert len(seed) <= target.longest
        target.run(seed)
    for _ in range(MUTATIONS):
        target.run(mutated(rng.choice(seeds), rng))


def test_target_raises_undeclared_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target does not swallow an error that it does not declare."""
    from fuzz import images

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(images, "preprocess", broken)
    with pytest.raises(ZeroDivisionError):
        TARGETS["images"].run(b"photo")
