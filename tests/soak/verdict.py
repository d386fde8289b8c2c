"""What must be true in the end: nothing acknowledged was lost or done twice, and all is exact."""

from __future__ import annotations

import sqlite3
from collections import Counter
from functools import partial

import numpy as np
from google.longrunning import operations_pb2
from google.rpc import code_pb2

from soak.callers import name_of
from soak.house import House
from soak.keeper import Keeper
from soak.ledger import Change, Ledger
from soak.pool import MODELS, Pairs, Pool
from topwork import CallFailed, Client, result
from topwork.bundle.exemplars import data_digest
from topwork.bundle.files import sha256
from topwork.bundle.head_graph import to_onnx
from topwork.bundle.maintenance.check import check
from topwork.bundle.manifest import Manifest
from topwork.bundle.store import Repository
from topwork.learning.learn import learn
from topwork.serving.head import HeadLoader
from topwork.wire.status import reason

FAILURES = {
    "ALREADY_EXISTS LABEL_EXISTS",
    "CANCELLED CANCELLED",
    "FAILED_PRECONDITION GATE_FAILED",
    "FAILED_PRECONDITION MODEL_CHANGED",
    "FAILED_PRECONDITION TOO_FEW_IMAGES",
    "FAILED_PRECONDITION TOO_FEW_LABELS",
    "NOT_FOUND NOT_FOUND",
}
"""How an operation may end but well: what another change or the client itself made of it."""

SOLVED_AGAIN = 20
"""Earlier revisions of each model that are compared with a fit, besides the last."""

TOLERANCE = 1e-5
"""Of probabilities, where the bytes differ."""


class Verdict:
    """Compares what clients were told with what is in the repository."""

    def __init__(
        self, repository: Repository, pool: Pool, keeper: Keeper, house: House, ledger: Ledger
    ) -> None:
        self._repository = repository
        self._pool = pool
        self._keeper = keeper
        self._house = house
        self._ledger = ledger
        self._changes: dict[str, Change] = {}
        self._ended: dict[str, operations_pb2.Operation] = {}

    def wait(self) -> None:
        """Wait until every acknowledged operation has ended; nobody must ask for more."""
        self._changes = {name_of(change): change for change in self._ledger.changes}
        for change in self._ledger.changes:
            if change.state == "acknowledged":
                try:
                    self._house.ask(partial(_watched, name=name_of(change)))
                except CallFailed as error:
                    self._ledger.violated(f"lost: {change}: {error.code} {error}")
        for operation in self._listed():  # of calls that broke off, too
            if not operation.done:
                self._house.ask(partial(_watched, name=operation.name))
        self._ended = {one.name: one for one in self._listed()}

    def _listed(self) -> list[operations_pb2.Operation]:
        return self._house.ask(lambda client: list(client.operations()))

    def judge(self) -> None:
        """Note all that is not as was promised; no server must run any more."""
        self._operations()
        manifests = self._keeper.remember()
        for model in MODELS:
            self._revisions(model, manifests[model])
            self._moves(model, manifests[model])
        self._uploads()
        self._storage()

    def _operations(self) -> None:
        """Check that each acknowledged change is an operation that ended well; no refused is."""
        for change in self._ledger.changes:
            found = self._ended.get(name_of(change))
            if found is None:
                if change.state == "acknowledged":
                    self._ledger.violated(f"lost: {change}")
            elif change.state == "refused":
                self._ledger.violated(f"refused and taken: {change}")
            elif not found.done:
                self._ledger.violated(f"never ended: {change}")
            else:
                self._ledger.count("operations", self._end_of(found))
        for name in self._ended.keys() - self._changes.keys():
            self._ledger.violated(f"nobody asked for {name}")

    def _end_of(self, operation: operations_pb2.Operation) -> str:
        if not operation.HasField("error"):
            return "done"
        end = f"{code_pb2.Code.Name(operation.error.code)} {reason(operation.error)}"
        if end not in FAILURES:
            self._ledger.violated(f"{operation.name} ended with {end} {operation.error.message}")
        return end

    def _revisions(self, model: str, manifests: list[Manifest]) -> None:
        """Check that each revision is its parent and its operation's change, and no more."""
        states: dict[int, Pairs] = {}
        for one in manifests:
            if one.revision == 1:
                states[1] = self._pool.first()
                continue
            change = self._changes.get(f"operations/{one.operation}")
            if change is None or change.state == "refused" or change.validate_only:
                self._ledger.violated(f"{model} revision {one.revision} is of {change}")
                continue
            states[one.revision] = changed(states[one.parent], change, self._pool)
            if one.data_digest != data_digest(sorted(states[one.revision])):
                self._ledger.violated(
                    f"{model} revision {one.revision} is not {one.parent} and {change}"
                )
        twice = Counter((one.operation, one.parent) for one in manifests)
        for (operation, parent), count in twice.items():
            if count > 1:
                self._ledger.violated(f"{model}: {operation} made {count} revisions of {parent}")
        self._ledger.count("revisions", "published", len(manifests) - 1)
        kept = self._repository.revisions(model)
        serving = self._repository.serving(model)
        for one in [one for one in manifests if one.revision in kept][-SOLVED_AGAIN:]:
            self._solve(one, states[one.revision], serves=one.revision == serving)
        if serving not in kept[-SOLVED_AGAIN:]:
            self._solve(self._keeper.manifest(model, serving), states[serving], serves=True)

    def _solve(self, manifest: Manifest, pairs: Pairs, *, serves: bool) -> None:
        """Compare a revision with one fit on the images that it is said to have."""
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
        one, _ = loader.load(content, **options).run(embeddings)
        other, _ = loader.load(self._repository.head(manifest), **options).run(embeddings)
        difference = float(np.abs(one - other).max())
        self._ledger.count("revisions", f"{what} within {TOLERANCE} of one fit")
        if difference > TOLERANCE:
            self._ledger.violated(
                f"{manifest.model} revision {manifest.revision} is {difference} from one fit"
            )

    def _moves(self, model: str, manifests: list[Manifest]) -> None:
        """Check that the pointer moved once for each success and rollback, and for nothing else."""
        moves = self._repository.serving_state(model).moves
        by_number = {one.revision: one for one in manifests}
        before = 0
        made: Counter[str] = Counter()
        rolled_back: Counter[int] = Counter()
        for move in moves:
            if move.previous != before:
                self._ledger.violated(f"{model} went from {before} to {move.previous} by nothing")
            before = move.revision
            if move.why == "rollback":
                rolled_back[move.previous] += 1
            elif move.operation:
                made[f"operations/{move.operation}"] += 1
                one = by_number[move.revision]
                if (one.operation, one.parent) != (move.operation, move.previous):
                    self._ledger.violated(
                        f"{model}: {move} is not what {one.revision} was made for"
                    )
        self._ledger.count("revisions", "moves of the pointer", len(moves))
        served = {move.revision for move in moves}
        for answered, revision in self._ledger.answered:
            if answered == model and revision not in served:
                self._ledger.violated(f"{model} revision {revision} answered and never served")
        for name, operation in self._ended.items():
            if self._changes[name].model == model:
                self._moved(operation, made[name], moves=by_number)
        asked = [one for one in self._ledger.rollbacks if one.model == model]
        least = Counter(one.expected for one in asked if one.state == "acknowledged")
        most = Counter(one.expected for one in asked if one.state != "refused")
        if not least <= rolled_back <= most:
            self._ledger.violated(f"{model}: rollbacks {rolled_back}, of {least} to {most}")

    def _moved(
        self, operation: operations_pb2.Operation, count: int, *, moves: dict[int, Manifest]
    ) -> None:
        """Compare an operation's end with how often it moved the pointer."""
        identifier = operation.name.removeprefix("operations/")
        expected = 0
        if operation.done and not operation.HasField("error"):
            revision = result(operation).revision.revision
            # Where nothing was to be done, or it was only validated, it names none of its own.
            expected = int(revision in moves and moves[revision].operation == identifier)
            change = self._changes[operation.name]
            if not expected and not (change.validate_only or change.kind == "add_examples"):
                self._ledger.violated(f"{change} was done and made nothing")
        if count != expected:
            self._ledger.violated(
                f"{self._changes[operation.name]} moved the pointer {count} times, not {expected}"
            )

    def _uploads(self) -> None:
        """Check that each upload that a serving revision was learnt from is there."""
        stored = self._repository.stored("images")
        for model in MODELS:
            serving = self._keeper.manifest(model, self._repository.serving(model))
            fitted = {ref.digest for ref in self._keeper.manifest(model, 1).exemplars}
            needed = {
                row.tobytes().hex()
                for ref in serving.exemplars
                if ref.digest not in fitted
                for row in self._repository.shard(ref.digest).contents
            }
            missing = needed - stored.keys()
            if missing:
                self._ledger.violated(f"{len(missing)} uploads of {model} are gone")
            self._ledger.count("revisions", "uploads of serving revisions there", len(needed))

    def _storage(self) -> None:
        """Check that the database is whole, and that after a last gc fsck has nothing to say."""
        with sqlite3.connect(self._repository.root / "operations.sqlite") as database:
            (said,) = database.execute("PRAGMA integrity_check").fetchone()
        database.close()
        if said != "ok":
            self._ledger.violated(f"operations.sqlite: {said}")
        self._house.age_leftovers()
        self._keeper.gc("--spare-hours", "0")
        for problem in check(self._repository):
            self._ledger.violated(f"in the end: {problem.path}: {problem.text}")


def _watched(client: Client, name: str) -> None:
    for _ in client.watch(name):
        pass


def changed(pairs: Pairs, change: Change, pool: Pool) -> Pairs:
    """Return what a model has learnt from after ``change``."""
    match change.kind:
        case "add_class" | "add_examples":
            return pairs | {(pool.digest(name), change.label) for name in change.images}
        case "remove_class":
            return frozenset(pair for pair in pairs if pair[1] != change.label)
        case "rename_class":
            return frozenset(
                (digest, change.new_label if label == change.label else label)
                for digest, label in pairs
            )
        case _:
            return pairs
