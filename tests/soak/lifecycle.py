"""Client that creates, teaches, copies, deletes and undeletes models of its own."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from support.pictures import COLOURS

from soak.clients import TIMEOUT, ChangeClient, name_of
from soak.ledger import Change, Ledger
from soak.pool import Pool
from soak.supervisor import RETRYABLE, Supervisor
from topwork import CallFailed, Client
from topwork.bundle.head_graph import to_onnx
from topwork.bundle.store import Repository
from topwork.learning.learn import learn
from topwork.storage.files import sha256


@dataclass(slots=True)
class _Call:
    """A call that is repeated until the server answers."""

    interrupted: bool = False
    """True if an earlier attempt may have been carried out."""


class LifecycleClient(ChangeClient):
    """Goes through the life of one model after another; a broken promise is a violation."""

    def __init__(
        self,
        repository: Repository,
        pool: Pool,
        supervisor: Supervisor,
        ledger: Ledger,
        seed: str,
        stop: threading.Event,
    ) -> None:
        super().__init__("", pool, supervisor, ledger, seed, stop)
        self._repository = repository

    def run(self) -> None:
        """Make one model after another until ``stop`` is set."""
        number = 0
        while not self._stop.is_set():
            number += 1
            self._live(f"born-{number}")

    def _live(self, model: str) -> None:
        self._make(
            lambda client, key: client.create_model(
                model, head="logistic", normalisation="sqrt_l2", request_id=key, timeout=TIMEOUT
            ),
        )
        changes = [self._add(model, colour) for colour in self._rng.sample(sorted(COLOURS), 2)]
        if self._rng.random() < 0.2:
            self._delete(model)  # while changes may run
            return
        for change in changes:
            if change.state == "acknowledged":
                self._wait(change)
        found = self._supervisor.retry(lambda client: client.model(model))
        if not found.HasField("serving_revision"):  # a change was refused or failed
            self._expect(model, "MODEL_NOT_READY")
            self._delete(model)
            return
        self._check_head(model, changes)
        copy = f"{model}-copy"
        self._make(
            lambda client, key: client.copy_model(model, copy, request_id=key, timeout=TIMEOUT),
        )
        self._check_head(copy, changes)
        self._delete(model)
        if self._rng.random() < 0.5:
            self._repeat("undelete", "NOT_FOUND", lambda client: client.undelete_model(model))
            self._check_head(model, changes)
            self._delete(model)
        self._delete(copy)

    def _add(self, model: str, colour: str) -> Change:
        change = Change(
            id=str(uuid.UUID(int=self._rng.getrandbits(128))),
            model=model,
            kind="add_class",
            label=colour,
            images=self._pool.draw(self._rng, colour, 10),
        )
        self._ledger.changes.append(change)
        self._submit(change)
        return change

    def _make(self, make: Callable[[Client, str], object]) -> None:
        """Make a model, twice with one request id."""
        key = str(uuid.UUID(int=self._rng.getrandbits(128)))
        for _ in range(2):
            self._supervisor.retry(lambda client: make(client, key))
        self._ledger.count("calls", "model made")

    def _delete(self, model: str) -> None:
        self._repeat("delete", "NOT_FOUND", lambda client: client.delete_model(model, force=True))
        self._expect(model, "NOT_FOUND")

    def _repeat(self, what: str, done: str, call: Callable[[Client], object]) -> None:
        """Call until the server answers; ``done`` is the code if an earlier attempt succeeded."""
        state = _Call()

        def attempt(client: Client) -> object:
            try:
                return call(client)
            except CallFailed as error:
                state.interrupted |= error.code in RETRYABLE
                raise

        try:
            self._supervisor.retry(attempt)
        except CallFailed as error:
            if not (state.interrupted and error.code == done):
                self._ledger.fail(f"{what}: {error.code} {error}")
        self._ledger.count("calls", f"model {what}")

    def _expect(self, model: str, reason: str) -> None:
        """Check that a model does not classify, for a reason."""
        photo = [next(iter(self._pool.plain.values()))]
        try:
            self._supervisor.retry(lambda client: client.classify(model, photo))
        except CallFailed as error:
            if error.reason == reason:
                return
            self._ledger.fail(f"Classify of {model}: {error.code} {error}, not {reason}")
        else:
            self._ledger.fail(f"{model} answered, instead of {reason}")

    def _check_head(self, model: str, changes: list[Change]) -> None:
        """Check that a model answers, and has the head of a fit on the photos of ``changes``."""
        with self._supervisor.place.steady:
            manifest = self._repository.manifest(model, self._repository.serving(model))
        pairs = frozenset(
            (self._pool.digest(name), change.label) for change in changes for name in change.images
        )
        exemplars = self._pool.exemplars(pairs)
        fitted = learn(exemplars, seed=manifest.seed, recipe=manifest.recipe)
        if sha256(to_onnx(fitted.head)) != manifest.head:
            same = exemplars.data_digest() == manifest.data_digest
            self._ledger.fail(
                f"{model} revision {manifest.revision} is not a fit of {changes}, "
                f"{'though' if same else 'and'} its examples are {'' if same else 'not '}theirs"
            )
        for change in changes:
            answer = self._supervisor.retry(
                lambda client, label=change.label: client.classify(  # type: ignore[misc]  # mypy cannot infer a lambda's default
                    model, [self._pool.plain[label]], top_k=1
                )
            )
            if answer.results[0].predictions[0].label != change.label:
                self._ledger.fail(f"{model} took {change.label} for {answer}, {name_of(change)}")
        self._ledger.count("revisions", "heads of new models that equal a fit")
