"""``topwork evaluations``: list, show and delete the evaluation sets of a model."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from typing import Protocol

import click

from topwork import tables
from topwork.bundle.evaluation_sets import EvaluationSets
from topwork.bundle.opening import open_repository
from topwork.bundle.store import Repository
from topwork.cli import show_result
from topwork.cli.options import ServerOptions, connected, json_output, server_option
from topwork.command_group import example
from topwork.repository_option import repository_option
from topwork.rpc.convert.evaluations import to_evaluation, to_evaluation_set
from topwork.storage.location import Location
from topwork.v1 import evaluation_pb2 as evaluation_pb

model_argument = click.argument("model")
name_argument = click.argument("name")
_repository_option = repository_option("Repository of the model, without a server.", exists=True)


class Source(Protocol):
    """The evaluation sets of models: a client, or a repository."""

    def list_evaluation_sets(self, model: str) -> Iterable[evaluation_pb.EvaluationSet]:
        """Yield the sets of a model."""

    def get_evaluation_set(self, model: str, name: str) -> evaluation_pb.EvaluationSet:
        """Return a set."""

    def delete_evaluation_set(self, model: str, name: str) -> None:
        """Delete a set."""

    def list_evaluations(self, model: str, name: str = "") -> Iterable[evaluation_pb.Evaluation]:
        """Yield the results on a set."""


class Stored:
    """The evaluation sets of a repository, with the methods of the client."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def list_evaluation_sets(self, model: str) -> Iterator[evaluation_pb.EvaluationSet]:
        """Yield the sets of a model. Raises NotFound."""
        self._repository.revisions(model)
        for name in EvaluationSets(self._repository, model).names():
            yield self.get_evaluation_set(model, name)

    def get_evaluation_set(self, model: str, name: str) -> evaluation_pb.EvaluationSet:
        """Return a set. Raises NotFound, Corrupt."""
        stored = EvaluationSets(self._repository, model).get(name)
        kept = self._repository.stored_images([image.content for image in stored.images])
        return to_evaluation_set(stored, sum(image.content in kept for image in stored.images))

    def delete_evaluation_set(self, model: str, name: str) -> None:
        """Delete a set. Raises NotFound."""
        EvaluationSets(self._repository, model).delete(name)

    def list_evaluations(self, model: str, name: str = "") -> Iterator[evaluation_pb.Evaluation]:
        """Yield the results on a set. Raises NotFound."""
        yield from map(to_evaluation, EvaluationSets(self._repository, model).results(name))


@contextlib.contextmanager
def _opened(server: ServerOptions, repository: Location | None) -> Iterator[Source]:
    if repository is not None:
        yield Stored(open_repository(repository))
    else:
        with connected(server) as client:
            yield client


@click.group()
def evaluations() -> None:
    """List, show and delete the evaluation sets of a model."""


@evaluations.command("list", epilog=example("topwork evaluations list flowers"))
@server_option
@_repository_option
@json_output
@model_argument
def list_sets(
    server: ServerOptions, repository: Location | None, as_json: bool, model: str
) -> None:
    """List the evaluation sets of MODEL."""
    with _opened(server, repository) as source:
        found = [*source.list_evaluation_sets(model)]
    if as_json:
        for row in found:
            print(json.dumps(show_result.set_json(row)))
    else:
        tables.console().print(show_result.sets(found))


@evaluations.command("show", epilog=example("topwork evaluations show flowers held-out"))
@server_option
@_repository_option
@json_output
@model_argument
@name_argument
def show_set(
    server: ServerOptions, repository: Location | None, as_json: bool, model: str, name: str
) -> None:
    """Show the evaluation set NAME of MODEL, and the results of all revisions on it."""
    with _opened(server, repository) as source:
        found = source.get_evaluation_set(model, name)
        results = [*source.list_evaluations(model, name)]
    if as_json:
        results_json = [show_result.result_json(row) for row in results]
        print(json.dumps({**show_result.set_json(found), "results": results_json}))
        return
    console = tables.console()
    console.print(show_result.one_set(found), "", show_result.results(results))
    if failure := next((row.gate_failure for row in results if row.gate_failure), ""):
        console.print(f"The last rejection: {failure}", highlight=False, markup=False)


@evaluations.command("delete", epilog=example("topwork evaluations delete flowers held-out"))
@server_option
@_repository_option
@model_argument
@name_argument
def delete_set(server: ServerOptions, repository: Location | None, model: str, name: str) -> None:
    """Delete the evaluation set NAME of MODEL with its results. It judges no change any more."""
    with _opened(server, repository) as source:
        source.delete_evaluation_set(model, name)
