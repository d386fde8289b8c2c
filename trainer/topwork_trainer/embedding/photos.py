"""Photos that were embedded earlier, as a fit takes them from the parts of an embedding run."""

from __future__ import annotations

import glob
import threading
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from topwork.bucket_files import find, is_bucket_url
from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.store import Repository
from topwork.errors import InvalidInput
from topwork.in_order import in_order
from topwork.inputs.data.photos import Photo
from topwork.printable import file_name
from topwork.storage.location import Location
from topwork.training.embed import Embedded
from topwork_trainer.audit_files import HeaderFacts
from topwork_trainer.data import Photos
from topwork_trainer.embedding.parts import PartFacts, read_embedded, read_facts
from topwork_trainer.embedding.plan import Plan, put_backbone, read_plan
from topwork_trainer.embedding.run_files import RunFiles, open_run

KEPT_PARTS = 4
"""Raising it reads parts less often if photos are not taken in order, and uses more memory."""

READERS = 4
"""Raising it hides more of the latency of a bucket: parts in memory before they are decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedPhoto(Photo):
    """A photo that was embedded. Implements EmbeddedBefore and AuditedBefore."""

    facts: PartFacts
    parts: PartReader
    part: int
    place: int
    """Its row in the part."""

    @property
    def group_id(self) -> bytes:
        """See EmbeddedBefore."""
        return self.facts.group

    def embedded(self) -> Embedded:
        """See EmbeddedBefore. Raises Corrupt if its part was damaged meanwhile, OSError."""
        return self.parts.embedded(self.part)[self.place]

    def header_facts(self) -> HeaderFacts | None:
        """See AuditedBefore."""
        return self.facts.header


class PartReader:
    """Reads the embeddings of parts when they are needed, and keeps the latest few.

    A fit takes photos in order, so that each part is read once for them.
    """

    def __init__(self, files: RunFiles, plan: Plan) -> None:
        self._files = files
        self._plan = plan
        self._lock = threading.Lock()
        self._kept: dict[int, list[Embedded]] = {}

    def embedded(self, part: int) -> list[Embedded]:
        """Return what was embedded of a part's photos, in order. Raises Corrupt, OSError."""
        with self._lock:
            if part not in self._kept:
                name = self._plan.part_name(part)
                self._kept[part] = read_embedded(
                    self._files.source(name),
                    name=f"{self._files}/{name}",
                    plan=self._plan.digest,
                    part=part,
                )
                while len(self._kept) > KEPT_PARTS:
                    del self._kept[next(iter(self._kept))]
            return self._kept[part]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedPhotos:
    """All photos of an embedding run, and its backbone."""

    photos: Photos
    plan: Plan
    files: RunFiles

    def put_backbone(self, repository: Repository) -> BackboneInfo:
        """Store the backbone in the repository of a fit, and return its info. Raises Corrupt."""
        with self.files.backbones() as source:
            return put_backbone(source, repository, self.plan.backbone)


def read_photos(pattern: str) -> EmbeddedPhotos:
    """Return the photos of the run whose parts match ``pattern``, a directory or ``DIR/*.parquet``.

    DIR may be the URL of a prefix in a bucket. Raises InvalidInput if they are not all parts of one
    run, Corrupt if one is damaged.
    """
    files = open_run(_directory(pattern))
    plan = read_plan(files)
    names = [plan.part_name(part) for part in range(plan.parts)]
    if missing := sorted({*names} - files.stored(names)):
        raise InvalidInput(
            f"{len(missing)} of {plan.parts} parts are missing in {files}, such as "
            f"{missing[0]}: run `topwork-train embed` again, which resumes",
            field="embeddings",
            reason="EMBEDDINGS_INCOMPLETE",
        )
    by_split: dict[str, list[Photo]] = defaultdict(list)
    reader = PartReader(files, plan)
    with closing(in_order(files.source, names, threads=READERS, ahead=READERS)) as sources:
        for part, (name, source) in enumerate(sources):
            found = read_facts(source, name=f"{files}/{name}", plan=plan.digest, part=part)
            for place, facts in enumerate(found):
                by_split[facts.split].append(_photo(facts, reader, part, place))
    return EmbeddedPhotos(
        photos=Photos(
            labels=plan.labels,
            train=tuple(by_split[""]),
            held_out={name: tuple(by_split[name]) for name in plan.splits},
            left_out=plan.left_out,
            notes=plan.notes,
        ),
        plan=plan,
        files=files,
    )


def _photo(facts: PartFacts, parts: PartReader, part: int, place: int) -> EmbeddedPhoto:
    return EmbeddedPhoto(
        name=facts.name,
        label=facts.label,
        read=_no_file,
        facts=facts,
        parts=parts,
        part=part,
        place=place,
    )


def _no_file() -> bytes:
    raise OSError("the photo was embedded earlier: only its embedding is here")


def _directory(pattern: str) -> Location:
    """Return the directory of all files that match. Raises InvalidInput unless it is one."""
    found: list[Location]
    if is_bucket_url(pattern):
        if not pattern.endswith(".parquet"):
            return pattern
        matches = find(pattern, field="embeddings").files
        found = [*sorted({match.url.rpartition("/")[0] for match in matches})]
    elif Path(pattern).is_dir():
        return Path(pattern)
    else:
        found = [*sorted({Path(match).parent for match in glob.glob(pattern)})]  # noqa: PTH207 # absolute
    if len(found) != 1:
        names = ", ".join(map(file_name, found)) or "none"
        raise InvalidInput(
            f"{pattern!r} has the parts of {len(found)} embedding runs ({names}); one is needed",
            field="embeddings",
        )
    return found[0]
