"""Clients that change and query models all the time, and record the responses."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from google.longrunning import operations_pb2

from soak.ledger import Change, Ledger, Rollback, State
from soak.pool import Pool, colour_of
from soak.supervisor import RETRYABLE, Supervisor
from topwork import CallFailed, Client
from topwork.limits import DEFAULT_LIMITS
from topwork.v1 import change_pb2 as change_pb

TIMEOUT = 30.0
"""Timeout of each call in seconds."""

LEAST_LABELS = 4
"""Minimum of labels for which a class is removed."""

KINDS = {
    "add_class": 30,
    "add_examples": 25,
    "add_classes": 15,
    "remove_class": 15,
    "rename_class": 10,
    "retrain": 10,
    "remove_examples": 15,
    "move_examples": 15,
    "rollback": 10,
}
"""Relative frequency of each kind of change."""

LEAST_IMAGES = DEFAULT_LIMITS.min_images_per_label
"""Minimum of images that a removal or a move leaves a label."""

ANY = change_pb.Gate(max_old_class_drop=1.0, min_new_class_recall=0.0)
"""Gate of moves, which may divide a colour between two labels that no head can tell apart."""

REFUSALS = {
    "LABEL_EXISTS",
    "LABEL_UNCHANGED",
    "NOT_FOUND",
    "TOO_FEW_IMAGES",
    "TOO_FEW_LABELS",
}
"""Reasons with which a change may be refused after a concurrent one."""


class ChangeClient:
    """Changes one model, concurrently with other clients."""

    def __init__(
        self,
        model: str,
        pool: Pool,
        supervisor: Supervisor,
        ledger: Ledger,
        seed: str,
        stop: threading.Event,
    ) -> None:
        self._model = model
        self._pool = pool
        self._supervisor = supervisor
        self._ledger = ledger
        self._rng = random.Random(seed)
        self._stop = stop

    def run(self) -> None:
        """Request one change after another until ``stop`` is set."""
        while not self._stop.is_set():
            kind = self._rng.choices([*KINDS], [*KINDS.values()])[0]
            if kind == "rollback":
                self._roll_back()
                continue
            change = self._random_change(kind)
            if change is None:
                continue
            self._ledger.changes.append(change)
            self._submit(change)
            if change.state != "acknowledged":
                continue
            if self._rng.random() < 0.3:
                self._resubmit(change)
            if self._rng.random() < 0.15:
                self._stop.wait(self._rng.uniform(0, 0.4))
                self._cancel(change)
            if self._rng.random() < 0.7:
                self._wait(change)

    def _random_change(self, kind: str) -> Change | None:
        """Return a random change of the serving revision; None if the kind is impossible."""
        rng = self._rng
        model = self._supervisor.retry(lambda client: client.model(self._model))
        labels = list(model.serving_revision.labels)
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
            case "add_classes":
                colours = rng.sample(sorted(self._pool.plain), 2)
                change.label, change.labels = (
                    "",
                    {
                        name: next(
                            (label for label in labels if colour_of(label) == colour), colour
                        )
                        for colour in colours
                        for name in self._pool.draw(rng, colour, rng.randint(6, 10))
                    },
                )
                change.images = tuple(change.labels)
            case "remove_class":
                if len(labels) < LEAST_LABELS:
                    return None
            case "rename_class":
                change.new_label = f"{colour_of(change.label)}.{rng.randrange(10**6)}"
            case "retrain":
                change.label = ""
            case "remove_examples" | "move_examples":
                return self._choose_examples(change, labels)
        return change

    def _choose_examples(self, change: Change, labels: list[str]) -> Change | None:
        """Return the change with examples of its label; None if it would leave too few."""
        rng, label = self._rng, change.label
        found = self._supervisor.retry(
            lambda client: [*client.list_examples(self._model, f'label = "{label}"')]
        )
        digests = sorted({example.digest for example in found})
        change.label, least, most = "", 1, min(3, len(digests) - LEAST_IMAGES)
        if change.kind == "move_examples":
            colour = colour_of(label)
            same = [other for other in labels if other != label and colour_of(other) == colour]
            change.label = rng.choice([*same, f"{colour}.{rng.randrange(10**6)}"])
            if change.label not in same:
                least, most = LEAST_IMAGES, len(digests) - LEAST_IMAGES
            elif rng.random() < 0.5 and digests:
                least = most = len(digests)  # the label goes
        if most < least:
            return None
        change.digests = tuple(rng.sample(digests, rng.randint(least, most)))
        return change

    def _submit(self, change: Change) -> None:
        """Call with retries until the change is accepted or refused."""
        interrupted = False

        def call(client: Client) -> operations_pb2.Operation:
            nonlocal interrupted
            try:
                return self._send(client, change)
            except CallFailed as error:
                interrupted |= error.code in RETRYABLE
                raise

        try:
            operation = self._supervisor.retry(call)
        except CallFailed as error:
            if error.reason not in REFUSALS:
                self._ledger.fail(f"{change} was refused: {error.code} {error}")
            # An interrupted earlier attempt may have been accepted, so that this one is refused.
            change.state = "unclear" if interrupted else "refused"
            self._ledger.count("calls", f"{change.kind} refused")
            return
        change.state = "acknowledged"
        self._ledger.count("calls", f"{change.kind} acknowledged")
        if operation.name != name_of(change):
            self._ledger.fail(f"{change} became {operation.name}")

    def _resubmit(self, change: Change) -> None:
        """Repeat a request id: the same change is the same operation, another label is refused."""
        if change.label and self._rng.random() < 0.3:
            other = replace(change, label=f"{change.label}!")
            try:
                self._supervisor.retry(lambda client: self._send(client, other))
            except CallFailed as error:
                if error.reason != "REQUEST_ID_REUSED":
                    self._ledger.fail(f"{other} under {change}'s id: {error.code} {error}")
            else:
                self._ledger.fail(f"{other} was accepted under {change}'s id")
            self._ledger.count("calls", "id repeated with another label")
            return
        again = self._supervisor.retry(lambda client: self._send(client, change))
        if again.name != name_of(change):
            self._ledger.fail(f"{change}, repeated, became {again.name}")
        self._ledger.count("calls", "id repeated")

    def _cancel(self, change: Change) -> None:
        self._supervisor.retry(lambda client: client.cancel(name_of(change)))
        self._ledger.count("calls", "cancel")

    def _wait(self, change: Change) -> None:
        self._supervisor.retry(lambda client: [*client.watch(name_of(change))])

    def _send(self, client: Client, change: Change) -> operations_pb2.Operation:
        options = change_pb.ChangeOptions(
            validate_only=change.validate_only,
            gate=ANY if change.kind == "move_examples" else None,
        )
        arguments: Any = {"request_id": change.id, "options": options, "timeout": TIMEOUT}
        files = self._pool.files(change.images)
        match change.kind:
            case "add_class":
                return client.add_class(change.model, change.label, files, **arguments)
            case "add_examples":
                return client.add_examples(change.model, change.label, files, **arguments)
            case "add_classes":
                classes = {
                    label: [file for file in files if change.labels[file[0]] == label]
                    for label in sorted({*change.labels.values()})
                }
                return client.add_classes(change.model, classes, **arguments)
            case "remove_class":
                return client.remove_class(change.model, change.label, **arguments)
            case "rename_class":
                return client.rename_class(
                    change.model, change.label, change.new_label, **arguments
                )
            case "remove_examples":
                return client.remove_examples(change.model, change.digests, **arguments)
            case "move_examples":
                return client.move_examples(change.model, change.digests, change.label, **arguments)
            case _:
                return client.retrain(change.model, **arguments)

    def _roll_back(self) -> None:
        expected = self._supervisor.retry(lambda client: client.model(self._model)).serving_revision
        state: State = "acknowledged"
        try:
            self._supervisor.client().rollback(
                self._model, expected_revision=expected.revision, timeout=TIMEOUT
            )
        except CallFailed as error:
            state = "unclear" if error.code in RETRYABLE else "refused"
            # A concurrent change came first, no revision served before, or gc deleted that one.
            if state == "refused" and error.code not in {
                "ABORTED",
                "FAILED_PRECONDITION",
                "NOT_FOUND",
            }:
                self._ledger.fail(f"a rollback of {self._model}: {error.code} {error}")
        self._ledger.rollbacks.append(
            Rollback(model=self._model, expected=expected.revision, state=state)
        )
        self._ledger.count("calls", f"rollback {state}")


class ClassifyClient:
    """Classifies plain pictures and checks each answer."""

    def __init__(
        self,
        pool: Pool,
        supervisor: Supervisor,
        labels: Callable[[str, int], tuple[str, ...]],
        ledger: Ledger,
        seed: str,
        stop: threading.Event,
        models: tuple[str, ...],
    ) -> None:
        self._pool = pool
        self._supervisor = supervisor
        self._labels = labels
        self._ledger = ledger
        self._rng = random.Random(seed)
        self._stop = stop
        self._models = models

    def run(self) -> None:
        """Classify at most a hundred times a second until ``stop`` is set."""
        colours = sorted(self._pool.plain)
        while not self._stop.wait(0.01):
            model = self._rng.choice(self._models)
            sample = self._rng.sample(colours, 3)
            images = [self._pool.plain[colour] for colour in sample]
            start = time.monotonic()
            try:
                answer = self._supervisor.client().classify(
                    model, images, top_k=100, timeout=TIMEOUT
                )
            except CallFailed as error:
                self._ledger.count("answers", f"{error.code} {error.reason}")
                if error.code not in RETRYABLE:
                    self._ledger.fail(f"Classify of {model}: {error.code} {error}")
                continue
            self._ledger.slowest = max(self._ledger.slowest, time.monotonic() - start)
            self._ledger.count("answers", "right")
            self._ledger.answered.add((model, answer.revision))
            labels = self._labels(model, answer.revision)
            for colour, image in zip(sample, answer.results, strict=True):
                predicted = [prediction.label for prediction in image.predictions]
                if sorted(predicted) != sorted(labels):
                    self._ledger.fail(
                        f"{model} revision {answer.revision} has {labels} and predicted {predicted}"
                    )
                elif colour in map(colour_of, labels) and colour_of(predicted[0]) != colour:
                    self._ledger.fail(
                        f"{model} revision {answer.revision} predicted {predicted[0]} for {colour}"
                    )


def name_of(change: Change) -> str:
    """Return the operation name of a change."""
    return f"operations/{change.id}"
