"""Engine ``ray``: a task of Ray for each part, on all machines of a cluster. Imports Ray."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from topwork.errors import InvalidInput
from topwork.inputs.data.photos import Photo
from topwork.storage.location import to_location
from topwork_trainer.embedding.plan import Plan, read_plan
from topwork_trainer.embedding.run_files import RunFiles, open_run
from topwork_trainer.embedding.work import Run

AHEAD = 2
"""Tasks in flight for each core of the cluster; raising it hides a longer latency of the driver."""


def embed_parts(
    out: RunFiles,
    plan: Plan,
    parts: Sequence[int],
    photos: Sequence[tuple[str, Photo]],
    on_photos: Callable[[int], None],
) -> int:
    """Embed the ``parts`` in tasks of a core each; see ``local_engine.embed_parts``.

    The cluster is that of RAY_ADDRESS, else one is started on this machine. All its machines need
    this software, and the photos and ``out`` at the same locations. Ray repeats the tasks of a
    machine that dies. Raises InvalidInput without Ray, or if the photos are members of an archive
    that is open in this process.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise InvalidInput(
            "the engine ray needs Ray: install topwork[ray]", field="engine"
        ) from error
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="warning")
    try:
        remote = ray.remote(num_cpus=1, max_retries=3)(embed_part)
        most = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        embedded = 0
        waiting: dict[Any, int] = {}
        for part in parts:
            own = plan.photos_of(part, photos)
            try:
                task = remote.remote(str(out.location), plan.digest, part, own)
            except TypeError as error:  # Ray cannot pickle an open file
                raise InvalidInput(
                    "the engine ray needs photos that are files of their own: unpack the archive",
                    field="engine",
                ) from error
            waiting[task] = len(own)
            while len(waiting) >= most:
                embedded += _finish(ray, waiting, on_photos)
        while waiting:
            embedded += _finish(ray, waiting, on_photos)
        return embedded
    finally:
        if started:
            ray.shutdown()


def embed_part(out: str, digest: str, part: int, photos: Sequence[tuple[str, Photo]]) -> int:
    """Embed one part in a worker of Ray, whose process keeps the backbone; see ``Run.embed``."""
    return _run(out, digest).embed(part, photos, wait=True) or 0


@functools.lru_cache(maxsize=1)
def _run(out: str, digest: str) -> Run:
    files = open_run(to_location(out))
    plan = read_plan(files)
    assert plan.digest == digest, "the plan of a run never changes"
    return Run.open(files, plan, cores=1)


def _finish(ray: Any, waiting: dict[Any, int], on_photos: Callable[[int], None]) -> int:
    """Wait for a task and return the number of photos that it embedded. Raises its error."""
    (done, *_), _ = ray.wait(list(waiting), num_returns=1)
    try:
        embedded = int(ray.get(done))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    on_photos(waiting.pop(done))
    return embedded
