"""Table of fuzz targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fuzz import data, images, requests, sounds, stored, texts, vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A function that takes any bytes, with seeds."""

    run: Callable[[bytes], None]
    """Raises an exception if it finds a defect."""
    seeds: Callable[[], list[bytes]]
    """Returns inputs to mutate."""
    longest: int
    """Maximum bytes of an input."""


TARGETS: dict[str, Target] = {
    "images": Target(run=images.decode, seeds=images.photos, longest=2**14),
    "media": Target(run=images.decode, seeds=images.media, longest=2**14),
    "dicom": Target(run=images.decode_dicom, seeds=images.dicoms, longest=2**14),
    "json": Target(run=stored.read_json, seeds=stored.documents, longest=2**15),
    "shards": Target(run=stored.read_shard, seeds=stored.shards, longest=2**15),
    "data": Target(run=data.read, seeds=data.seeds, longest=2**15),
    "examples": Target(run=stored.read_examples, seeds=stored.indexes, longest=2**15),
    "texts": Target(run=texts.read, seeds=texts.seeds, longest=2**13),
    "vectors": Target(run=vectors.read, seeds=vectors.seeds, longest=2**13),
    "sounds": Target(run=sounds.decode, seeds=sounds.seeds, longest=2**14),
    "requests": Target(run=requests.call, seeds=requests.messages, longest=2**12),
}
