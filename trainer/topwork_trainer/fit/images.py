"""Storage of training photos in the repository, as uploads are stored."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from topwork.bundle.exemplars import Exemplars
from topwork.bundle.store import Repository
from topwork.inputs.image_source import ImageSource

THREADS = 16
"""Raising it writes more photos at a time: the disk syncs several in the time of one."""


def keep_images(
    repository: Repository, sources: Sequence[ImageSource], exemplars: Exemplars
) -> None:
    """Store the encoded photos of ``exemplars``, which were embedded from ``sources``.

    Raises OSError or ImageError if a photo can be read no longer, or stored.
    """
    contents = {row.tobytes() for row in exemplars.contents}

    def keep(source: ImageSource) -> None:
        content = source.read()
        if hashlib.sha256(content).digest() in contents:
            repository.put_image(content)

    names = set(exemplars.names)
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(keep, [source for source in sources if source.name in names]):
            pass
