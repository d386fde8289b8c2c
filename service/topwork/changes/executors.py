"""Leases of workers, and takeover of the orphaned operations of dead workers.

DBOS returns a worker only the operations of its own executor name. Those of a worker that never
starts again would stay PENDING, and block their models, for ever.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import structlog
from dbos import DBOSClient, error
from sqlalchemy.exc import SQLAlchemyError

from topwork.bundle.names import check_model
from topwork.changes.database import CHANGE, QUEUE
from topwork.errors import InvalidInput
from topwork.storage.database_locks import locks_of
from topwork.storage.file_locks import FileLocks
from topwork.storage.location import Location
from topwork.storage.locks import Lease, Locks

log = structlog.get_logger(__name__)

CHECK_SECONDS = 2.0
"""Raising it delays the takeover of orphaned operations, but reads the database less often."""

MAX_NAME_BYTES = 200
"""Raising it allows longer executor names; a lock file's name, quoted, may have 255 bytes."""


class Leases:
    """Locks of a repository's workers: leases of their names, and locks of the models they change.

    A directory has them as files, also for workers of earlier releases. Those of a bucket are in
    the database of operations.
    """

    def __init__(self, location: Location, url: str) -> None:
        """Take the repository's location, and the URL of its database of operations."""
        self.files: FileLocks | None = None
        self.executors: Locks
        self.models: Locks
        if isinstance(location, Path):
            self.executors = self.files = FileLocks(location / "workers")
            self.models = FileLocks(location / "workers" / "models")
        else:
            # Not by the bucket: the workers of another one take operations from the same queue.
            executors, models = (locks_of(url, name) for name in ("workers", "models"))
            assert executors is not None, "an empty URL of a database was refused"
            assert models is not None, "an empty URL of a database was refused"
            self.executors, self.models = executors, models


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The lease of an executor's name; it ends with the process that holds it."""

    executor: str
    leases: Leases
    lease: Lease

    def held(self) -> bool:
        """Return True unless the lock file was deleted or replaced, or the connection was lost."""
        return self.lease.held()

    def release(self) -> None:
        """Give the name back."""
        self.lease.release()


def claim(leases: Leases, executor: str, *, on_wait: Callable[[], None] = lambda: None) -> Claim:
    """Claim an executor's name; waits for a worker that holds it.

    ``on_wait`` is called before waiting. Raises InvalidInput for an empty or too long name, OSError
    if the locks cannot be reached.
    """

    def waits() -> None:
        log.info("another worker has this executor's name; waiting", executor=executor)
        on_wait()

    lease = leases.executors.claim(check_executor(executor), on_wait=waits)
    return Claim(executor=executor, leases=leases, lease=lease)


def check_executor(executor: str) -> str:
    """Return the name of an executor. Raises InvalidInput for an empty or too long name."""
    if not executor or len(quote(executor, safe="")) > MAX_NAME_BYTES - len(".lock"):
        raise InvalidInput(
            f"executor {executor[:80]!r} must be 1 to {MAX_NAME_BYTES} plain characters",
            field="executor",
        )
    return executor


def lock_model(leases: Leases, model: str) -> AbstractContextManager[Callable[[], None]]:
    """Hold a model's lock against other changes of the model, on any host.

    The queue's partitions are not enough on PostgreSQL: while a worker takes an operation, another
    may get an operation of the same model that was queued in between. Yields a function that
    raises LockLost if the lock was lost.
    """
    return leases.models.locked(check_model(model))


class Takeover:
    """Finds orphaned operations, and puts them back into the queue."""

    def __init__(self, own: Claim, client: DBOSClient, running: Collection[str]) -> None:
        self._own = own
        self._client = client
        self._running = running
        self._not_running: set[str] = set()
        self._unknown: set[str] = set()

    def recover(self) -> list[str]:
        """Requeue operations of earlier workers of this name; call it before DBOS is launched.

        DBOS skips those of another application version, which would block their models for ever.
        """
        return self._requeue(self._own.executor, self._pending()[self._own.executor])

    def watch(self) -> str:
        """Check for orphaned operations for ever; return the reason if this worker must exit."""
        unavailable = False
        while True:
            time.sleep(CHECK_SECONDS)
            if not self._own.held():
                return f"{self._lost()}: other workers assume that this one is dead"
            try:
                self.requeue_orphaned()
                not_running = self.not_running()
            except (SQLAlchemyError, error.DBOSException, OSError) as failed:
                if not unavailable:
                    log.warning("cannot look for dead workers' operations", error=str(failed))
                unavailable = True
                continue
            unavailable = False
            if not_running:
                return f"this worker does not run its operations {sorted(not_running)}"

    def requeue_orphaned(self) -> list[str]:
        """Put the operations of dead workers back into the queue; return their ids."""
        requeued = []
        for executor, operations in self._pending().items():
            if executor == self._own.executor:
                continue
            files = self._own.leases.files
            if files is not None and not files.path(executor).exists():
                self._log_unknown(executor, files.path(executor))
                continue
            lease = self._own.leases.executors.try_claim(executor)
            if lease is None:
                continue
            try:  # it is dead, and cannot start again before this is done
                requeued += self._requeue(executor, operations)
            finally:
                lease.release()
        return requeued

    def not_running(self) -> set[str]:
        """Return operations assigned to this worker that it did not run at two checks in a row.

        A database that fails while it assigns an operation leaves such an operation.
        """
        # Pending is read first, so that an operation that starts meanwhile is seen as running.
        now = self._pending()[self._own.executor] - set(self._running)
        before, self._not_running = self._not_running, now
        return now & before

    def _requeue(self, executor: str, operations: set[str]) -> list[str]:
        # Requeues only operations still assigned to ``executor``: another worker may have done it.
        # DBOSClient.resume_workflow would requeue any operation, even a cancelled one.
        requeue = self._client._sys_db.reenqueue_for_recovery  # noqa: SLF001  # see above
        requeued = [
            operation for operation in sorted(operations) if requeue(operation, [executor], QUEUE)
        ]
        if requeued:
            log.warning("took over from a dead worker", executor=executor, ids=requeued)
        return requeued

    def _pending(self) -> defaultdict[str, set[str]]:
        """Return the ids of the operations assigned to workers, by executor."""
        workflows = self._client.list_workflows(
            name=CHANGE, status="PENDING", load_input=False, load_output=False
        )
        pending: defaultdict[str, set[str]] = defaultdict(set)
        for workflow in workflows:
            pending[workflow.executor_id or ""].add(workflow.workflow_id)
        return pending

    def _lost(self) -> str:
        files = self._own.leases.files
        if files is not None:
            return f"{files.path(self._own.executor)} was deleted"
        return "the lock of this worker's name was lost"

    def _log_unknown(self, executor: str, path: Path) -> None:
        """Log once that an executor has no lock file here: it may run with another repository."""
        if executor not in self._unknown:
            self._unknown.add(executor)
            log.error(
                "operations of an unknown worker wait; does it have another repository? "
                "If it is dead, create its lock file",
                executor=executor,
                file=str(path),
            )
