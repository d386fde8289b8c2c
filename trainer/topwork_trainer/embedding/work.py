"""Work of an embedding run: embeds the photos of a part, once among all processes of the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

from topwork.errors import ImageError, InvalidInput
from topwork.inputs.data.photos import Photo
from topwork.training.backbone_session import UsedBackbone, open_backbone_session
from topwork.training.embed import embed_each
from topwork_trainer.audit_files import HeaderFacts, header_facts
from topwork_trainer.embedding.parts import encode_part, is_part, to_row
from topwork_trainer.embedding.plan import Plan, versions
from topwork_trainer.embedding.run_files import RunFiles

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """An embedding run, as a process sees it."""

    out: RunFiles
    plan: Plan
    backbone: UsedBackbone
    cores: int

    @classmethod
    def open(cls, out: RunFiles, plan: Plan, *, cores: int) -> Run:
        """Open the backbone. Raises Corrupt, and InvalidInput if this software is another."""
        if versions() != plan.versions:
            raise InvalidInput(
                f"the run has the versions {plan.versions}, and this process {versions()}: all "
                "processes need the same",
                field="out",
                reason="EMBEDDINGS_DIFFER",
            )
        with out.backbones() as repository:
            info = repository.backbone_info(plan.backbone)
            backbone = open_backbone_session(repository, info)
        return cls(out=out, plan=plan, backbone=backbone, cores=cores)

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
        with self.out.claimed(part, wait=wait) as is_mine:
            if not is_mine:
                return None
            if done_parts(self.out, self.plan, [part]):
                return 0
            content = self._part(part, photos, on_photo)
            return len(photos) if self.out.write(self.plan.part_name(part), content) else 0

    def _part(
        self, part: int, photos: Sequence[tuple[str, Photo]], on_photo: Callable[[], None]
    ) -> bytes:
        """Return the content of a part."""
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
        width = self.backbone.info.width
        return encode_part(rows, width=width, plan=self.plan.digest, part=part)

    def _header(self, photo: Photo) -> HeaderFacts | None:
        try:
            return header_facts(photo, self.backbone.info.image_spec)
        except (OSError, ImageError):  # it was read a moment ago
            return None


def done_parts(out: RunFiles, plan: Plan, parts: Sequence[int]) -> set[int]:
    """Return those of the ``parts`` that are there, and whole."""
    stored = out.stored([plan.part_name(part) for part in parts])
    present = {part for part in parts if plan.part_name(part) in stored}
    return present if out.is_atomic else {part for part in present if _is_whole(out, plan, part)}


def _is_whole(out: RunFiles, plan: Plan, part: int) -> bool:
    photos = min(plan.part_photos, plan.photos - part * plan.part_photos)
    source = out.source(plan.part_name(part))
    return is_part(source, plan=plan.digest, part=part, photos=photos)
