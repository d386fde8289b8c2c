"""The fuzz targets hold what they say on their seeds, and on these a little changed.

``make fuzz`` searches on, with coverage to guide it; here it is seen that the targets still work.
"""

from __future__ import annotations

import random

import pytest
from fuzz.targets import TARGETS

CHANGED = 60
"""Changed inputs of each target."""


def changed(seed: bytes, rng: random.Random) -> bytes:
    """Return ``seed`` cut, repeated or with some other bytes."""
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
def test_a_target_takes_what_comes(name: str) -> None:
    """Nothing but what a target declares is raised, whatever it is given."""
    target = TARGETS[name]
    seeds = target.seeds()
    rng = random.Random(name)
    target.run(b"")
    for seed in seeds:
        assert len(seed) <= target.longest
        target.run(seed)
    for _ in range(CHANGED):
        target.run(changed(rng.choice(seeds), rng))


def test_a_target_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is raised and not declared is not swallowed."""
    from fuzz import images

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(images, "preprocess", broken)
    with pytest.raises(ZeroDivisionError):
        TARGETS["images"].run(b"photo")
