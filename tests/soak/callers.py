"""Clients that change models and ask them all the time, and note what they are told."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from google.longrunning import operations_pb2

from soak.house import AGAIN, House
from soak.ledger import Change, Ledger, Rollback, State
from soak.pool import Pool, colour_of
from topwork import CallFailed, Client
from topwork.v1 import change_pb2 as change_pb

TIMEOUT = 30.0
"""Seconds of a call, so that none hangs for ever."""

LEAST_LABELS = 4
"""With fewer no class is removed."""

KINDS = {
    "add_class": 30,
    "add_examples": 25,
    "remove_class": 15,
    "rename_class": 10,
    "retrain": 10,
    "rollback": 10,
}
"""How often each is asked for."""

REFUSALS = {
    "ALREADY_EXISTS": "LABEL_EXISTS",
    "NOT_FOUND": "NOT_FOUND",
    "FAILED_PRECONDITION": "TOO_FEW_LABELS",
}
"""How a change may be refused that another one overtook: by code."""


class Changer:
    """Changes one model, beside others who do."""

    def __init__(
        self, model: str, pool: Pool, house: House, ledger: Ledger, seed: str, over: threading.Event
    ) -> None:
        self._model = model
        self._pool = pool
        self._house = house
        self._ledger = ledger
        self._rng = random.Random(seed)
        self._over = over

    def run(self) -> None:
        """Ask for one change after another until it is over."""
        while not self._over.is_set():
            kind = self._rng.choices([*KINDS], [*KINDS.values()])[0]
            if kind == "rollback":
                self._roll_back()
                continue
            change = self._chosen(kind)
            if change is None:
                continue
            self._ledger.changes.append(change)
            self._ask(change)
            if change.state != "acknowledged":
                continue
            if self._rng.random() < 0.3:
                self._ask_again(change)
            if self._rng.random() < 0.15:
                self._over.wait(self._rng.uniform(0, 0.4))
                self._cancel(change)
            if self._rng.random() < 0.7:
                self._wait(change)

    def _chosen(self, kind: str) -> Change | None:
        """Return a change that the model as it serves now can have; None if there is none."""
        rng = self._rng
        found = self._house.ask(lambda client: client.model(self._model))
        labels = list(found.serving_revision.labels)
        change = Change(
            id=str(uuid.UUID(int=rng.getrandbits(128), version=4)),
            model=self._model,
            kind=kind,
            label=rng.choice(labels),
            validate_only=rng.random() < 0.1,
        )
        match kind:
            case "add_class":
                absent = sorted({*self._pool.plain} - {colour_of(label) for label in labels})
                if not absent:
                    return None
                change.label = rng.choice(absent)
                if rng.random() < 0.1:
                    change.images = ("junk-0",) * 6
                else:
                    change.images = self._pool.draw(rng, change.label, rng.randint(8, 14))
            case "add_examples":
                change.images = self._pool.draw(rng, colour_of(change.label), rng.randint(2, 6))
            case "remove_class":
                if len(labels) < LEAST_LABELS:
                    return None
            case "rename_class":
                change.new_label = f"{colour_of(change.label)}.{rng.randrange(10**6)}"
            case "retrain":
                change.label = ""
        return change

    def _ask(self, change: Change) -> None:
        """Ask, again and again, until the change is taken or refused."""
        broken = False

        def call(client: Client) -> operations_pb2.Operation:
            nonlocal broken
            try:
                return self._send(client, change)
            except CallFailed as error:
                broken |= error.code in AGAIN
                raise

        try:
            operation = self._house.ask(call)
        except CallFailed as error:
            if error.reason != REFUSALS.get(error.code):
                self._ledger.violated(f"{change} was refused: {error.code} {error}")
            # What broke off before may have been taken, and this be refused because of it.
            change.state = "unclear" if broken else "refused"
            self._ledger.count("calls", f"{change.kind} refused")
            return
        change.state = "acknowledged"
        self._ledger.count("calls", f"{change.kind} acknowledged")
        if operation.name != name_of(change):
            self._ledger.violated(f"{change} became {operation.name}")

    def _ask_again(self, change: Change) -> None:
        """Repeat a call under its id: it must be the same operation, or, of another label, none."""
        if change.label and self._rng.random() < 0.3:
            other = replace(change, label=f"{change.label}!")
            try:
                self._house.ask(lambda client: self._send(client, other))
            except CallFailed as error:
                if error.reason != "REQUEST_ID_REUSED":
                    self._ledger.violated(f"{other} under {change}'s id: {error.code} {error}")
            else:
                self._ledger.violated(f"{other} was taken under {change}'s id")
            self._ledger.count("calls", "id repeated with another label")
            return
        again = self._house.ask(lambda client: self._send(client, change))
        if again.name != name_of(change):
            self._ledger.violated(f"{change}, repeated, became {again.name}")
        self._ledger.count("calls", "id repeated")

    def _cancel(self, change: Change) -> None:
        self._house.ask(lambda client: client.cancel(name_of(change)))
        self._ledger.count("calls", "cancel")

    def _wait(self, change: Change) -> None:
        self._house.ask(lambda client: [*client.watch(name_of(change))])

    def _send(self, client: Client, change: Change) -> operations_pb2.Operation:
        options = change_pb.ChangeOptions(validate_only=change.validate_only)
        given: Any = {"request_id": change.id, "options": options, "timeout": TIMEOUT}
        files = self._pool.files(change.images)
        match change.kind:
            case "add_class":
                return client.add_class(change.model, change.label, files, **given)
            case "add_examples":
                return client.add_examples(change.model, change.label, files, **given)
            case "remove_class":
                return client.remove_class(change.model, change.label, **given)
            case "rename_class":
                return client.rename_class(change.model, change.label, change.new_label, **given)
            case _:
                return client.retrain(change.model, **given)

    def _roll_back(self) -> None:
        expected = self._house.ask(lambda client: client.model(self._model)).serving_revision
        state: State = "acknowledged"
        try:
            self._house.client().rollback(
                self._model, expected_revision=expected.revision, timeout=TIMEOUT
            )
        except CallFailed as error:
            state = "unclear" if error.code in AGAIN else "refused"
            # Another change came first, none served before, or gc has deleted what did.
            if state == "refused" and error.code not in {
                "ABORTED",
                "FAILED_PRECONDITION",
                "NOT_FOUND",
            }:
                self._ledger.violated(f"a rollback of {self._model}: {error.code} {error}")
        self._ledger.rollbacks.append(
            Rollback(model=self._model, expected=expected.revision, state=state)
        )
        self._ledger.count("calls", f"rollback {state}")


class Asker:
    """Classifies plain pictures, and checks each answer."""

    def __init__(
        self,
        pool: Pool,
        house: House,
        labels: Callable[[str, int], tuple[str, ...]],
        ledger: Ledger,
        seed: str,
        over: threading.Event,
        models: tuple[str, ...],
    ) -> None:
        self._pool = pool
        self._house = house
        self._labels = labels
        self._ledger = ledger
        self._rng = random.Random(seed)
        self._over = over
        self._models = models

    def run(self) -> None:
        """Ask until it is over, about a hundred times a second at most."""
        colours = sorted(self._pool.plain)
        while not self._over.wait(0.01):
            model = self._rng.choice(self._models)
            asked = self._rng.sample(colours, 3)
            images = [self._pool.plain[colour] for colour in asked]
            start = time.monotonic()
            try:
                answer = self._house.client().classify(model, images, top_k=100, timeout=TIMEOUT)
            except CallFailed as error:
                self._ledger.count("answers", f"{error.code} {error.reason}")
                if error.code not in AGAIN:
                    self._ledger.violated(f"Classify of {model}: {error.code} {error}")
                continue
            self._ledger.slowest = max(self._ledger.slowest, time.monotonic() - start)
            self._ledger.count("answers", "right")
            self._ledger.answered.add((model, answer.revision))
            labels = self._labels(model, answer.revision)
            for colour, one in zip(asked, answer.results, strict=True):
                said = [prediction.label for prediction in one.predictions]
                if sorted(said) != sorted(labels):
                    self._ledger.violated(
                        f"{model} revision {answer.revision} has {labels} and said {said}"
                    )
                elif colour in map(colour_of, labels) and colour_of(said[0]) != colour:
                    self._ledger.violated(
                        f"{model} revision {answer.revision} took {colour} for {said[0]}"
                    )


def name_of(change: Change) -> str:
    """Return the name of the operation that a change is."""
    return f"operations/{change.id}"
