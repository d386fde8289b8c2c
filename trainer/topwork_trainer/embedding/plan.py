"""Plan of an embedding run: the photos of each part, the backbone and the software.

    plan.json
    begin.lock, locked while plan.json is written; not in a bucket
    plan.lock, locked by the byte with a part's number while a process works on that part; neither
    backbones/<sha256>/backbone.onnx, backbone.json, as in a repository
    part-00000.parquet ...

All processes of a run, and a run that resumes it, have the same plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import PIL

from topwork.bundle.documents import document, from_json, to_json
from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.store import Repository
from topwork.errors import InvalidInput
from topwork.inputs.data.photos import Photo
from topwork.inputs.folders import LeftOut
from topwork.runtime.backend import software_versions
from topwork.storage import files
from topwork_trainer.data import Photos
from topwork_trainer.embedding.run_files import RunFiles

FILE = "plan.json"

SCHEMA = 1
"""Schema version of plan.json and of the parts."""

PART_PHOTOS = 1024
"""Raising it makes parts fewer and larger: a kill loses the part in progress of each process."""


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Content of plan.json."""

    data: str
    """sha256 of split, label, name and group of all photos, in order."""
    photos: int
    """Number of photos, those of held-out splits last."""
    part_photos: int
    """Number of photos of each part but the last."""
    backbone: str
    """Digest of the backbone, which is stored beside the plan."""
    preview_pixels: int
    """Side of the thumbnails."""
    versions: dict[str, str]
    """Versions of the software, of which others may compute slightly different embeddings."""
    labels: tuple[str, ...]
    splits: tuple[str, ...]
    """Names of the held-out splits, in order."""
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    schema: int = SCHEMA

    @property
    def digest(self) -> str:
        """sha256 of the plan, which each part has."""
        return files.sha256(to_json(self))

    @property
    def parts(self) -> int:
        """Number of parts."""
        return -(-self.photos // self.part_photos)

    def photos_of(self, part: int, photos: Sequence[tuple[str, Photo]]) -> list[tuple[str, Photo]]:
        """Return the photos of a part, with their splits, among all of ``listed``."""
        return list(photos[part * self.part_photos : (part + 1) * self.part_photos])

    def part_name(self, part: int) -> str:
        """Return the file name of a part."""
        return f"part-{part:05}.parquet"


def listed(photos: Photos) -> list[tuple[str, Photo]]:
    """Return all photos with the name of their split (empty: to train on), in the plan's order."""
    held_out = (((name, photo) for photo in own) for name, own in photos.held_out.items())
    return list(chain((("", photo) for photo in photos.train), *held_out))


def make_plan(
    photos: Photos, backbone: BackboneInfo, *, preview_pixels: int, part_photos: int
) -> Plan:
    """Return the plan of an embedding run."""
    every = listed(photos)
    digest = hashlib.sha256()
    for split, photo in every:
        row = (split, photo.label, photo.name, photo.group)
        digest.update(json.dumps(row).encode() + b"\n")
    return Plan(
        data=digest.hexdigest(),
        photos=len(every),
        part_photos=part_photos,
        backbone=backbone.digest,
        preview_pixels=preview_pixels,
        versions=versions(),
        labels=photos.labels,
        splits=tuple(photos.held_out),
        left_out=photos.left_out,
        notes=photos.notes,
    )


def versions() -> dict[str, str]:
    """Return the versions of the software that decodes photos and computes embeddings."""
    return {**software_versions(), "pillow": PIL.__version__}


def begin(out: RunFiles, plan: Plan) -> Plan:
    """Store a plan, or return the plan that is there, to resume it.

    The size of its parts stays. Raises InvalidInput if it is of other photos, another backbone,
    other thumbnails or other software.
    """
    if out.create(FILE, to_json(plan)):
        return plan
    stored = read_plan(out)
    for name, text in (
        ("data", "other photos"),
        ("backbone", "another backbone"),
        ("preview_pixels", "thumbnails of another size"),
        ("versions", "other versions of the software"),
    ):
        if getattr(stored, name) != getattr(plan, name):
            more = f": {stored.versions}, here {plan.versions}" if name == "versions" else ""
            raise InvalidInput(
                f"{out} has parts of {text}{more}; choose another directory",
                field="out",
                reason="EMBEDDINGS_DIFFER",
            )
    if replace(plan, part_photos=stored.part_photos) != stored:
        raise InvalidInput(
            f"{out} has parts of data that left out other files; choose another directory",
            field="out",
            reason="EMBEDDINGS_DIFFER",
        )
    return stored


def read_plan(out: RunFiles) -> Plan:
    """Return the plan of a run. Raises InvalidInput if there is none or a newer one, Corrupt."""
    content = out.read(FILE)
    if content is None:
        raise InvalidInput(
            f"{out} has no {FILE}: `topwork-train embed` makes it", field="embeddings"
        )
    plan = from_json(content, Plan, name=FILE)
    if plan.schema != SCHEMA:
        raise InvalidInput(
            f"{out}/{FILE} has schema {plan.schema}; this software reads {SCHEMA}",
            field="embeddings",
        )
    return plan


def put_backbone(source: Repository, target: Repository, digest: str) -> BackboneInfo:
    """Copy a backbone, and its fp32 twin, from a repository to another. Raises Corrupt."""
    info = source.backbone_info(digest)
    if info.twin is not None:
        put_backbone(source, target, info.twin)
    return target.put_backbone(source.backbone_model(digest), info)
