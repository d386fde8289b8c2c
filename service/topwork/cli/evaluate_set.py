"""``topwork evaluate --name``: store labelled photos as an evaluation set, or use a stored set."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import click

from topwork import Client, LabelledImage
from topwork.bundle.evaluation_sets import (
    EmbeddedSet,
    EvaluationSet,
    check_max_drop,
    check_name,
)
from topwork.bundle.manifest import Manifest, check_may_serve
from topwork.bundle.store import Repository
from topwork.cli.evaluation_sources import Embedded, OnImage
from topwork.cli.follow import follow, print_evaluation, progress_bar
from topwork.cli.labelled_data import Source
from topwork.errors import ImageError, InvalidInput, NotFound
from topwork.inputs.data.photos import Photo
from topwork.local import open_backbone
from topwork.rpc.convert.evaluations import to_evaluation
from topwork.runtime.cores import available_cores
from topwork.storage import files
from topwork.training.evaluation_sets import SetJudge, Subject, set_images
from topwork.v1 import evaluation_pb2 as evaluation_pb


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Parameters of an evaluation on a set."""

    model: str
    revision: int
    """0: the serving one."""
    compare: int
    """0: the parent, if it exists and has the same backbone."""
    name: str
    max_drop: float | None


def check_options(name: str, max_drop: float | None, *, data: bool, html: bool) -> None:
    """Raise InvalidInput if the options of ``topwork evaluate`` do not fit together."""
    if name:
        check_name(name, field="name")
    if max_drop is not None:
        check_max_drop(max_drop, field="max-drop")
        if not name or not data:
            text = "--max-drop needs --name and DATA: only a new evaluation set can become a gate"
            raise InvalidInput(text, field="max-drop")
    if not data and not name:
        raise InvalidInput("give DATA, or --name of a stored evaluation set", field="data")
    if html and name:
        text = "--html shows photos; evaluate DATA without --name to write it"
        raise InvalidInput(text, field="html")


def on_server(
    client: Client, photos: Sequence[Photo], source: Source, wanted: Parameters, *, as_json: bool
) -> None:
    """Evaluate a revision with an operation of a server, and print the result."""
    start = time.perf_counter()
    unreadable: list[str] = []
    with progress_bar() as bar:
        task = bar.add_task("uploading", total=len(photos))

        def read() -> Iterator[LabelledImage]:
            for photo in photos:
                bar.advance(task)
                try:
                    content = source.content(photo)
                except (OSError, ImageError) as error:
                    unreadable.append(f"left out {photo.name}: {error}")
                    continue
                yield LabelledImage((photo.name, content), photo.label, dict(photo.columns))

        accepted = client.evaluate(
            wanted.model,
            read(),
            revision=wanted.revision,
            compare=wanted.compare,
            name=wanted.name,
            max_drop=wanted.max_drop,
        )
        finished = follow(client, accepted, bar)
    for line in unreadable:
        click.echo(line, err=True)
    print_evaluation(finished, time.perf_counter() - start, as_json=as_json)


def in_repository(
    repository: Repository, photos: Sequence[Photo], on_image: OnImage, wanted: Parameters
) -> evaluation_pb.Evaluation:
    """Evaluate a revision without a server; store the photos, if there are some, as a set.

    Raises NotFound, NotReady, AlreadyExists, InvalidInput if no photo is usable, and Corrupt.
    """
    model, name = wanted.model, wanted.name
    manifest = _manifest(repository, model, wanted.revision)
    before = (
        _manifest(repository, model, wanted.compare)
        if wanted.compare
        else _parent(repository, manifest)
    )
    judge = SetJudge(
        repository,
        model,
        lambda info: open_backbone(repository, info).session,
        cores=available_cores(),
    )
    if photos:
        judge.sets.check_free(name)
        exemplars = Embedded(repository, photos, on_image).exemplars(manifest)
        used = {row.tobytes().hex() for row in exemplars.contents}
        columns = {}
        for photo in photos:
            with contextlib.suppress(OSError, ImageError):  # it was skipped
                content = photo.read()
                digest = files.sha256(content)
                columns[photo.label, digest] = photo.columns
                if digest in used:
                    repository.put_image(content)
        shards = repository.put_exemplars(exemplars)
        stored = judge.sets.create(
            EvaluationSet(
                model=model,
                name=name,
                created=datetime.now(UTC),
                max_drop=wanted.max_drop,
                images=set_images(repository.shards(shards), columns),
                embedded=(EmbeddedSet(backbone=manifest.backbone, shards=shards),),
            )
        )
    else:
        stored = judge.sets.get(name)
    result = judge.judge(
        stored,
        Subject.of(repository, manifest, repository.shard),
        None if before is None else Subject.of(repository, before, repository.shard),
    )
    judge.sets.put_result(result)
    return to_evaluation(result)


def _manifest(repository: Repository, model: str, revision: int) -> Manifest:
    manifest = repository.manifest(model, revision or repository.serving(model))
    check_may_serve(manifest)
    return manifest


def _parent(repository: Repository, manifest: Manifest) -> Manifest | None:
    """Return the parent of a revision, if it exists and has the same backbone."""
    if not manifest.parent:
        return None
    try:
        parent = repository.manifest(manifest.model, manifest.parent)
    except NotFound:
        return None
    return parent if parent.backbone == manifest.backbone else None
