"""Work of an embedding run: embeds the photos of a part, once among all processes of the run."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from topwork.bundle.store import Repository
from topwork.errors import ImageError, InvalidInput
from topwork.inputs.data.photos import Photo
from topwork.training.backbone_session import UsedBackbone, open_backbone_session
from topwork.training.embed import embed_each
from topwork_trainer.audit_files import HeaderFacts, header_facts
from topwork_trainer.embedding.parts import is_part, to_row, write_part
from topwork_trainer.embedding.plan import LOCK, Plan, versions

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """An embedding run, as a process sees it."""

    out: Path
    plan: Plan
    backbone: UsedBackbone
    cores: int

    @classmethod
    def open(cls, out: Path, plan: Plan, *, cores: int) -> Run:
        """Open the backbone. Raises Corrupt, and InvalidInput if this software is another."""
        if versions() != plan.versions:
            raise InvalidInput(
                f"the run has the versions {plan.versions}, and this process {versions()}: all "
                "processes need the same",
                field="out",
                reason="EMBEDDINGS_DIFFER",
            )
        repository = Repository(out)
        info = repository.backbone_info(plan.backbone)
        return cls(
            out=out, plan=plan, backbone=open_backbone_session(repository, info), cores=cores
        )

    def embed(
        self,
        part: int,
        photos: Sequence[tuple[str, Photo]],
        *,
        wait: bool,
        on_photo: Callable[[], None] = lambda: None,
    ) -> int | None:
        """Embed a part and write it, unless it is there; return the number of embedded photos.

        Returns None if another process works on it; if it ``wait``s, that process ends first.
        ``photos`` are those of the part with their splits. ``on_photo`` is called for each photo
        that is embedded, in the calling thread.
        """
        with _claimed(self.out / LOCK, part, wait=wait) as is_mine:
            if not is_mine:
                return None
            if is_done(self.out, self.plan, part):
                return 0
            self._write(part, photos, on_photo)
            return len(photos)

    def _write(
        self, part: int, photos: Sequence[tuple[str, Photo]], on_photo: Callable[[], None]
    ) -> None:
        spec = self.backbone.info.image_spec
        rows = []
        done = embed_each(
            [photo for _, photo in photos],
            self.backbone.session,
            spec,
            cores=self.cores,
            preview_pixels=self.plan.preview_pixels,
        )
        with closing(done) as results:
            for (split, photo), (_, embedded) in zip(photos, results, strict=True):
                on_photo()
                is_audited = not split and isinstance(embedded, tuple)
                header = self._header(photo) if is_audited else None
                rows.append(to_row(split, photo, embedded, header))
        path = self.plan.part_file(self.out, part)
        width = self.backbone.info.width
        write_part(path, rows, width=width, plan=self.plan.digest, part=part)

    def _header(self, photo: Photo) -> HeaderFacts | None:
        try:
            return header_facts(photo, self.backbone.info.image_spec)
        except (OSError, ImageError):  # it was read a moment ago
            return None


def is_done(out: Path, plan: Plan, part: int) -> bool:
    """Return True if there is a whole part of the plan."""
    photos = min(plan.part_photos, plan.photos - part * plan.part_photos)
    return is_part(plan.part_file(out, part), plan=plan.digest, part=part, photos=photos)


@contextmanager
def _claimed(lock: Path, part: int, *, wait: bool) -> Iterator[bool]:
    """Lock a part's byte of the lock file, until the block or the process ends; yield False if not.

    Byte-range locks also hold between machines on NFS. Without working locks two processes may
    embed the same part, and write the same file.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, part)
        except (BlockingIOError, PermissionError):
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
