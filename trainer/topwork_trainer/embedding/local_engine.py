"""Engine ``local``: embeds in this process, in threads; several such processes share a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from topwork.inputs.data.photos import Photo
from topwork.runtime.cores import available_cores
from topwork_trainer.embedding.plan import Plan
from topwork_trainer.embedding.run_files import RunFiles
from topwork_trainer.embedding.work import Run


def embed_parts(
    out: RunFiles,
    plan: Plan,
    parts: Sequence[int],
    photos: Sequence[tuple[str, Photo]],
    on_photos: Callable[[int], None],
) -> int:
    """Embed the ``parts``, those on which other processes work last, in case these die.

    Returns the number of photos that this process has embedded. ``photos`` are all photos of the
    plan. ``on_photos`` is called with a number of photos that are done. Raises what Run.open
    raises.
    """
    run = Run.open(out, plan, cores=available_cores())
    embedded, others = 0, []
    for part in parts:
        own = plan.photos_of(part, photos)
        count = run.embed(part, own, wait=False, on_photo=lambda: on_photos(1))
        if count is None:
            others.append(part)
            continue
        embedded += count
        on_photos(0 if count else len(own))
    for part in others:
        own = plan.photos_of(part, photos)
        embedded += run.embed(part, own, wait=True) or 0
        on_photos(len(own))
    return embedded
