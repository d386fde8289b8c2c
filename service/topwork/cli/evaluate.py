"""``topwork evaluate``: evaluate a model on labelled inputs, with a server or a repository."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click

from topwork import tables
from topwork.bundle.opening import open_repository
from topwork.bundle.signing.signatures import SigningFiles
from topwork.cli import evaluate_set, evaluation_sources, show_evaluation, show_result
from topwork.cli.evaluation_sources import Answered, OnImage
from topwork.cli.image_rows import photo_bar
from topwork.cli.input_files import list_files, read_bytes
from topwork.cli.input_kinds import PHOTOS
from topwork.cli.labelled_data import Source, read_test_data
from topwork.cli.options import (
    ServerOptions,
    check_page,
    connected,
    json_output,
    require_signed_option,
    server_option,
    trusted_keys_option,
    write_page,
)
from topwork.errors import InvalidInput
from topwork.inputs.data.photos import Photo
from topwork.inputs.data.test_set import TestSet
from topwork.inputs.folders import LeftOut, by_reason
from topwork.learning import evaluation
from topwork.learning.evaluation import SUBGROUP_VALUES, Answers
from topwork.printable import file_name, printable
from topwork.report.evaluation import Evaluated, render_evaluation
from topwork.report.formatting import several
from topwork.repository_option import repository_option
from topwork.storage.location import Location
from topwork.terminal import LocalPath

Question = Sequence[int]
"""Revisions: the evaluated one and, if there is one, that with which it is compared."""


@click.command()
@server_option
@repository_option("Repository of the model, to evaluate without a server.", exists=True)
@trusted_keys_option()
@require_signed_option
@click.option(
    "--revision",
    default=0,
    type=click.IntRange(min=0),
    help="Revision to evaluate; 0: the serving one.",
)
@click.option(
    "--compare",
    type=click.IntRange(min=1),
    help="Revision to compare it with, on the same photos.",
)
@click.option(
    "--strangers",
    type=LocalPath(exists=True, file_okay=False, path_type=Path),
    help="Folder of photos of none of the model's classes, which it should call unknown.",
)
@click.option(
    "--name",
    default="",
    show_default=False,
    help="Store the photos under this name, to judge every later change; without DATA evaluate on "
    "the set that has it.",
)
@click.option(
    "--max-drop",
    type=float,
    help="Make the stored set a gate: no change serves that loses more of the mean recall on it, "
    "0..1.",
)
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a report.")
@json_output
@click.argument("model")
@click.argument("data", required=False, type=LocalPath(exists=True, path_type=Path))
def evaluate(
    server: ServerOptions,
    repository: Location | None,
    trusted_keys: Path | None,
    require_signed: bool,
    revision: int,
    compare: int | None,
    strangers: Path | None,
    name: str,
    max_drop: float | None,
    html: Path | None,
    as_json: bool,
    model: str,
    data: Path | None,
) -> None:
    """Evaluate MODEL on the labelled photos of DATA, with a server or a repository.

    DATA is as for `topwork-train fit`, and for a model of texts a folder with one folder of files
    .txt per class, for a model of embeddings files of NumPy with labels; of data with splits the
    test split is used. Photos of
    classes that the model lacks count as unknown images. With --repository, photos that the model
    was trained on are left out; a server cannot know them, so pass held-out photos. With --name it
    does: the photos are uploaded, and stored as an evaluation set.
    """
    evaluate_set.check_options(name, max_drop, data=data is not None, html=html is not None)
    check_page(html, field="html")
    source, test_set = (None, None) if data is None else read_test_data(data)
    left_out = by_reason(test_set.omitted) if test_set is not None else []
    photos: tuple[Photo, ...] = ()
    if test_set is not None:
        photos = test_set.photos_of(test_set.labels())
    if data is not None and not photos:
        more = f"; left out: {', '.join(map(str, left_out))}" if left_out else ""
        noun = source.kind.noun if source is not None else PHOTOS.noun
        raise InvalidInput(f"{file_name(data)} has no labelled {noun}{more}", field="data")
    source, unknown = _strangers(strangers, source)
    photos += unknown
    signing = SigningFiles(trusted_keys=trusted_keys, require_signed=require_signed)
    if name:
        for group in left_out:
            click.echo(printable(group.line()), err=True)
        parameters = evaluate_set.Parameters(
            model=model, revision=revision, compare=compare or 0, name=name, max_drop=max_drop
        )
        if repository is None:
            with connected(server) as client:
                evaluate_set.on_server(client, photos, source, parameters, as_json=as_json)
        else:
            opened = open_repository(repository, signing.read(publishes=False))
            with _progress(len(photos)) as on_image:
                found = evaluate_set.in_repository(opened, photos, on_image, parameters)
            show_result.print_result(found, as_json=as_json)
        return
    assert test_set is not None, "check_options refuses neither DATA nor --name"
    question = [revision, *([] if compare is None else [compare])]
    if repository is None:
        with connected(server) as client, _progress(len(photos) * len(question)) as on_image:
            answered = evaluation_sources.from_server(
                client, model, question, photos, source, on_image
            )
    else:
        opened = open_repository(repository, signing.read(publishes=False))
        with _progress(len(photos) * len(question)) as on_image:
            answered = evaluation_sources.from_repository(opened, model, question, photos, on_image)
    evaluated = _evaluate(model, answered, test_set, left_out, source)
    if html is not None:
        write_page(html, render_evaluation(evaluated), field="html")
    if as_json:
        print(json.dumps(show_evaluation.as_json(evaluated)))
        return
    for line in (*(group.line() for group in left_out), *evaluated.notes):
        click.echo(printable(line), err=True)
    show_evaluation.show(tables.console(), evaluated)


def _strangers(folder: Path | None, source: Source | None) -> tuple[Source, tuple[Photo, ...]]:
    """Return the inputs below a folder, without labels, and the source of all inputs.

    Raises InvalidInput if they are of another kind than ``source``.
    """
    if folder is None:
        return source or Source(kind=PHOTOS), ()
    files = list_files([folder], field="strangers")
    if source is not None and source.kind is not files.kind:
        raise InvalidInput(
            f"{file_name(folder)} has {files.kind.noun}s and DATA has {source.kind.noun}s: a model "
            "takes inputs of one kind",
            field="strangers",
        )
    return source or Source(kind=files.kind), tuple(
        Photo(
            name=file_name(path.relative_to(folder.parent)),
            label="",
            read=partial(read_bytes, path, files.kind),
            path=path,
        )
        for path in files.paths
    )


def _evaluate(
    model: str,
    answered: Answered,
    test_set: TestSet,
    left_out: Sequence[LeftOut],
    source: Source,
) -> Evaluated:
    photos, (answers, *others) = answered.photos, answered.answers
    result = evaluation.evaluate_answers(photos, answers)
    before = others[0] if others else None
    return Evaluated(
        model=model,
        photos=photos,
        kind=source.kind.name,
        answers=answers,
        evaluation=result,
        compared=None if before is None else evaluation.evaluate_answers(photos, before),
        comparison=None if before is None else evaluation.compare_answers(photos, before, answers),
        skipped=[(each.name, each.message) for each in answered.skipped],
        left_out=tuple(left_out),
        notes=(*test_set.notes, *answered.notes, *_notes(photos, answers, answered)),
    )


def _notes(photos: Sequence[Photo], answers: Answers, answered: Answered) -> Iterator[str]:
    """Yield sentences about photos and labels that are not as the user may expect."""
    if answered.skipped:
        first = answered.skipped[0]
        skipped = several(len(answered.skipped), "photo")
        yield f"{skipped} skipped, the first is {first.name}: {first.message}"
    if lacking := evaluation.lacking_labels(photos, answers.labels):
        named = ", ".join(
            f"{label!r} {count:,}{_close(label, answers.labels)}"
            for label, count in [*lacking.items()][:10]
        )
        more = f" and {len(lacking) - 10:,} more" if len(lacking) > 10 else ""
        yield (
            f"{several(sum(lacking.values()), 'photo')} of classes that revision "
            f"{answers.revision} lacks count as unknown images: {named}{more}"
        )
    present = {photo.label for photo in photos}
    if missing := [label for label in answers.labels if label not in present]:
        named = ", ".join(map(repr, missing[:10])) + (", ..." if len(missing) > 10 else "")
        yield f"There is no photo of {several(len(missing), 'class', 'classes')}: {named}"
    for column in evaluation.subgroup_columns(photos)[1]:
        yield f"The column {column!r} has more than {SUBGROUP_VALUES} values: it is no subgroup"


def _close(label: str, labels: Sequence[str]) -> str:
    close = difflib.get_close_matches(label, labels, n=1)
    return f" (close to {close[0]!r})" if close else ""


@contextmanager
def _progress(total: int) -> Iterator[OnImage]:
    """Yield a function that advances a bar on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    with photo_bar() as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
