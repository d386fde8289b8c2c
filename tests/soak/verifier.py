"""Final verification: no acknowledged change is lost or done twice, and all heads are exact."""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np
from google.longrunning import operations_pb2
from google.rpc import code_pb2

from soak.clients import name_of
from soak.ledger import Change, Ledger
from soak.maintainer import Maintainer
from soak.pool import MODELS, Pairs, Pool
from soak.supervisor import Supervisor
from topwork import CallFailed, Client, result
from topwork.bundle.exemplars import data_digest
from topwork.bundle.head_graph import to_onnx
from topwork.bundle.maintenance.check import check
from topwork.bundle.manifest import Manifest
from topwork.bundle.store import Repository
from topwork.learning.learn import learn
from topwork.serving.head import HeadLoader
from topwork.storage.files import sha256
from topwork.wire.status import reason

FAILURES = {
    "ALREADY_EXISTS LABEL_EXISTS",
    "ALREADY_EXISTS LABEL_UNCHANGED",
    "CANCELLED CANCELLED",
    "FAILED_PRECONDITION GATE_FAILED",
    "FAILED_PRECONDITION MODEL_CHANGED",
    "FAILED_PRECONDITION TOO_FEW_IMAGES",
    "FAILED_PRECONDITION TOO_FEW_LABELS",
    "NOT_FOUND MODEL_DELETED",
    "NOT_FOUND NOT_FOUND",
}
"""Errors with which an operation may end because of another change or of its client."""

COMPARED = 20
"""Latest revisions of each model that are compared with a fit, besides the serving one."""

TOLERANCE = 1e-5
"""Maximum difference of probabilities if the bytes of a head differ."""


class Verifier:
    """Compares the ledger with the repository."""

    def __init__(
        self,
        repository: Repository,
        pool: Pool,
        maintainer: Maintainer,
        supervisor: Supervisor,
        ledger: Ledger,
    ) -> None:
        self._repository = repository
        self._pool = pool
        self._maintainer = maintainer
        self._supervisor = supervisor
        self._ledger = ledger
        self._changes: dict[str, Change] = {}
        self._ended: dict[str, operations_pb2.Operation] = {}

    def wait(self) -> None:
        """Wait until every operation has ended; no client may request more."""
        self._changes = {name_of(change): change for change in self._ledger.changes}
        for change in self._ledger.changes:
            if change.state == "acknowledged":
                try:
                    self._supervisor.retry(partial(_watched, name=name_of(change)))
                except CallFailed as error:
                    self._ledger.fail(f"lost: {change}: {error.code} {error}")
        for operation in self._listed():  # also of interrupted calls
            if not operation.done:
                self._supervisor.retry(partial(_watched, name=operation.name))
        self._ended = {operation.name: operation for operation in self._listed()}

    def _listed(self) -> list[operations_pb2.Operation]:
        return self._supervisor.retry(lambda client: list(client.operations()))

    def verify(self) -> None:
        """Record all violated promises; no server may run."""
        self._check_operations()
        manifests = self._maintainer.all_manifests()
        for model in MODELS:
            self._check_revisions(model, manifests[model])
            self._check_moves(model, manifests[model])
        self._check_uploads()
        self._check_storage()

    def _check_operations(self) -> None:
        """Check that acknowledged changes have an ended operation, and refused ones have none."""
        for change in self._ledger.changes:
            operation = self._ended.get(name_of(change))
            if operation is None:
                if change.state == "acknowledged":
                    self._ledger.fail(f"lost: {change}")
            elif change.state == "refused":
                self._ledger.fail(f"refused and accepted: {change}")
            elif not operation.done:
                self._ledger.fail(f"never ended: {change}")
            else:
                self._ledger.count("operations", self._end_of(operation))
        for name in self._ended.keys() - self._changes.keys():
            self._ledger.fail(f"no client requested {name}")

    def _end_of(self, operation: operations_pb2.Operation) -> str:
        if not operation.HasField("error"):
            return "done"
        end = f"{code_pb2.Code.Name(operation.error.code)} {reason(operation.error)}"
        if end not in FAILURES:
            self._ledger.fail(f"{operation.name} ended with {end} {operation.error.message}")
        return end

    def _check_revisions(self, model: str, manifests: list[Manifest]) -> None:
        """Check that each revision is its parent plus its operation's change."""
        states: dict[int, Pairs] = {}
        for manifest in manifests:
            revision = manifest.revision
            if revision == 1:
                states[1] = self._pool.first()
                continue
            change = self._changes.get(f"operations/{manifest.operation}")
            if change is None or change.state == "refused" or change.validate_only:
                self._ledger.fail(f"{model} revision {revision} is of {change}")
                continue
            states[revision] = changed(states[manifest.parent], change, self._pool)
            if manifest.data_digest != data_digest(sorted(states[revision])):
                self._ledger.fail(
                    f"{model} revision {revision} is not {manifest.parent} and {change}"
                )
        made = Counter((manifest.operation, manifest.parent) for manifest in manifests)
        for (operation, parent), count in made.items():
            if count > 1:
                self._ledger.fail(f"{model}: {operation} made {count} revisions of {parent}")
        self._ledger.count("revisions", "published", len(manifests) - 1)
        stored = self._repository.revisions(model)
        serving = self._repository.serving(model)
        for manifest in [each for each in manifests if each.revision in stored][-COMPARED:]:
            revision = manifest.revision
            self._compare_with_fit(manifest, states[revision], serves=revision == serving)
        if serving not in stored[-COMPARED:]:
            self._compare_with_fit(
                self._maintainer.manifest(model, serving), states[serving], serves=True
            )

    def _compare_with_fit(self, manifest: Manifest, pairs: Pairs, *, serves: bool) -> None:
        """Compare a revision's head with one fit on its images."""
        what = "serving head" if serves else "earlier head"
        fitted = learn(self._pool.exemplars(pairs), seed=manifest.seed, recipe=manifest.recipe)
        content = to_onnx(fitted.head)
        if sha256(content) == manifest.head:
            self._ledger.count("revisions", f"{what} byte for byte that of one fit")
            return
        embeddings = self._pool.exemplars(pairs).embeddings
        options = {
            "width": embeddings.shape[1],
            "labels": len(manifest.labels),
            "unknown": manifest.chosen.unknown_threshold is not None,
        }
        loader = HeadLoader()
        expected, _ = loader.load(content, **options).run(embeddings)
        served, _ = loader.load(self._repository.head(manifest), **options).run(embeddings)
        difference = float(np.abs(expected - served).max())
        self._ledger.count("revisions", f"{what} within {TOLERANCE} of one fit")
        if difference > TOLERANCE:
            self._ledger.fail(
                f"{manifest.model} revision {manifest.revision} is {difference} from one fit"
            )

    def _check_moves(self, model: str, manifests: list[Manifest]) -> None:
        """Check that serving.json changed once for each success and rollback, and only then."""
        moves = self._repository.serving_state(model).moves
        by_number = {manifest.revision: manifest for manifest in manifests}
        before = 0
        made: Counter[str] = Counter()
        rolled_back: Counter[int] = Counter()
        for move in moves:
            if move.previous != before:
                self._ledger.fail(f"{model} went from {before} to {move.previous} without a move")
            before = move.revision
            if move.why == "rollback":
                rolled_back[move.previous] += 1
            elif move.operation:
                made[f"operations/{move.operation}"] += 1
                manifest = by_number[move.revision]
                if (manifest.operation, manifest.parent) != (move.operation, move.previous):
                    self._ledger.fail(f"{model}: {move} is not the move of its revision")
        self._ledger.count("revisions", "moves of serving.json", len(moves))
        served = {move.revision for move in moves}
        for answered, revision in self._ledger.answered:
            if answered == model and revision not in served:
                self._ledger.fail(f"{model} revision {revision} answered and never served")
        for name, operation in self._ended.items():
            if self._changes[name].model == model:
                self._check_move(operation, made[name], by_number)
        rollbacks = [rollback for rollback in self._ledger.rollbacks if rollback.model == model]
        least = Counter(r.expected for r in rollbacks if r.state == "acknowledged")
        most = Counter(r.expected for r in rollbacks if r.state != "refused")
        if not least <= rolled_back <= most:
            self._ledger.fail(f"{model}: rollbacks {rolled_back}, of {least} to {most}")

    def _check_move(
        self, operation: operations_pb2.Operation, count: int, manifests: dict[int, Manifest]
    ) -> None:
        """Check that an operation changed serving.json once if it published a revision."""
        identifier = operation.name.removeprefix("operations/")
        expected = 0
        if operation.done and not operation.HasField("error"):
            revision = result(operation).revision.revision
            # A change without effect or with validate_only has no revision of its own.
            expected = int(revision in manifests and manifests[revision].operation == identifier)
            change = self._changes[operation.name]
            if not expected and not (
                change.validate_only or change.kind in {"add_classes", "add_examples"}
            ):
                self._ledger.fail(f"{change} was done and published no revision")
        if count != expected:
            self._ledger.fail(
                f"{self._changes[operation.name]} moved serving.json {count} times, not {expected}"
            )

    def _check_uploads(self) -> None:
        """Check that the uploads of serving revisions are stored."""
        stored = self._repository.stored("images")
        for model in MODELS:
            serving = self._maintainer.manifest(model, self._repository.serving(model))
            needed = {
                row.tobytes().hex()
                for ref in serving.exemplars
                if ref.operation  # also of shards that later changes rewrote
                for row in self._repository.shard(ref.digest).contents
            }
            missing = needed - stored.keys()
            if missing:
                self._ledger.fail(f"{len(missing)} uploads of {model} are missing")
            self._ledger.count("revisions", "stored uploads of serving revisions", len(needed))

    def _check_storage(self) -> None:
        """Check the database's integrity, and that fsck finds no problem after a last gc."""
        if damage := self._supervisor.place.database_damage():
            self._ledger.fail(damage)
        self._supervisor.age_temporary_files()
        self._maintainer.gc("--spare-hours", "0", "--deleted-days", "0")
        for problem in check(self._repository):
            self._ledger.fail(f"in the end: {problem.path}: {problem.text}")


def _watched(client: Client, name: str) -> None:
    for _ in client.watch(name):
        pass


def changed(pairs: Pairs, change: Change, pool: Pool) -> Pairs:
    """Return the training set of a model after ``change``."""
    match change.kind:
        case "add_class" | "add_examples":
            return pairs | {(pool.digest(name), change.label) for name in change.images}
        case "add_classes":
            return pairs | {(pool.digest(name), label) for name, label in change.labels.items()}
        case "remove_class":
            return frozenset(pair for pair in pairs if pair[1] != change.label)
        case "rename_class":
            return frozenset(
                (digest, change.new_label if label == change.label else label)
                for digest, label in pairs
            )
        case "remove_examples":
            return frozenset(pair for pair in pairs if pair[0].hex() not in change.digests)
        case "move_examples":
            return frozenset(
                (digest, change.label if digest.hex() in change.digests else label)
                for digest, label in pairs
            )
        case _:
            return pairs
