"""Photos that were embedded earlier, as a fit takes them from the parts of an embedding run."""

from __future__ import annotations

import glob
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.store import Repository
from topwork.errors import InvalidInput
from topwork.inputs.data.photos import Photo
from topwork.printable import file_name
from topwork.training.embed import Embedded
from topwork_trainer.audit_files import HeaderFacts
from topwork_trainer.data import Photos
from topwork_trainer.embedding.parts import PartRow, read_part
from topwork_trainer.embedding.plan import Plan, put_backbone, read_plan


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedPhoto(Photo):
    """A photo that was embedded. Implements EmbeddedBefore and AuditedBefore."""

    row: PartRow

    @property
    def group_id(self) -> bytes:
        """See EmbeddedBefore."""
        return self.row.group_id

    def embedded(self) -> Embedded:
        """See EmbeddedBefore."""
        return self.row.embedded

    def header_facts(self) -> HeaderFacts | None:
        """See AuditedBefore."""
        return self.row.header


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedPhotos:
    """All photos of an embedding run, and its backbone."""

    photos: Photos
    plan: Plan
    directory: Path

    def put_backbone(self, repository: Repository) -> BackboneInfo:
        """Store the backbone in the repository of a fit, and return its info. Raises Corrupt."""
        return put_backbone(Repository(self.directory), repository, self.plan.backbone)


def read_photos(pattern: str) -> EmbeddedPhotos:
    """Return the photos of the run whose parts match ``pattern``, a directory or ``DIR/*.parquet``.

    Raises InvalidInput if they are not all parts of one run, Corrupt if one is damaged.
    """
    directory = _directory(pattern)
    plan = read_plan(directory)
    files = [plan.part_file(directory, part) for part in range(plan.parts)]
    if missing := [file for file in files if not file.exists()]:
        raise InvalidInput(
            f"{len(missing)} of {plan.parts} parts are missing in {file_name(directory)}, such as "
            f"{missing[0].name}: run `topwork-train embed` again, which resumes",
            field="embeddings",
            reason="EMBEDDINGS_INCOMPLETE",
        )
    by_split: dict[str, list[Photo]] = defaultdict(list)
    for part, file in enumerate(files):
        for row in read_part(file, plan=plan.digest, part=part):
            by_split[row.split].append(_photo(row))
    return EmbeddedPhotos(
        photos=Photos(
            labels=plan.labels,
            train=tuple(by_split[""]),
            held_out={name: tuple(by_split[name]) for name in plan.splits},
            left_out=plan.left_out,
            notes=plan.notes,
        ),
        plan=plan,
        directory=directory,
    )


def _photo(row: PartRow) -> EmbeddedPhoto:
    def read() -> bytes:
        raise OSError(f"{row.name} was embedded earlier: only its embedding is here")

    return EmbeddedPhoto(name=row.name, label=row.label, read=read, row=row)


def _directory(pattern: str) -> Path:
    """Return the directory of all files that match. Raises InvalidInput unless it is one."""
    if Path(pattern).is_dir():
        return Path(pattern)
    found = sorted({Path(match).parent for match in glob.glob(pattern)})  # noqa: PTH207 # absolute
    if len(found) != 1:
        names = ", ".join(map(file_name, found)) or "none"
        raise InvalidInput(
            f"{pattern!r} has the parts of {len(found)} embedding runs ({names}); one is needed",
            field="embeddings",
        )
    return found[0]
