"""Leases of workers, as file locks, and takeover of the orphaned operations of dead workers.

DBOS returns a worker only the operations of its own executor name. Those of a worker that never
starts again would stay PENDING, and block their models, for ever.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

import structlog
from dbos import DBOSClient, error
from sqlalchemy.exc import SQLAlchemyError

from topwork.bundle import files
from topwork.bundle.names import check_model
from topwork.changes.database import CHANGE, QUEUE
from topwork.errors import InvalidInput

log = structlog.get_logger(__name__)

CHECK_SECONDS = 2.0
"""Raising it delays the takeover of orphaned operations, but reads the database less often."""

MAX_NAME_BYTES = 200
"""Raising it allows longer executor names; a lock file's name, quoted, may have 255 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The lease of an executor's name; it ends with the process that holds it."""

    executor: str
    path: Path
    file: IO[str]
    """Holds the lock while it is open."""

    def held(self) -> bool:
        """Return True unless the lock file was deleted or replaced."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self.file.fileno()))
        except FileNotFoundError:
            return False


def claim(root: Path, executor: str, *, on_wait: Callable[[], None] = lambda: None) -> Claim:
    """Claim an executor's name in the repository ``root``; waits for a worker that holds it.

    ``on_wait`` is called before waiting. Raises InvalidInput for an empty or too long name.
    """
    path = _lock_file(root, check_executor(executor))
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = path.open("a")
        if not _try_lock(file):
            log.info("another worker has this executor's name; waiting", executor=executor)
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        claimed = Claim(executor=executor, path=path, file=file)
        if claimed.held():
            # Else a power failure may lose the file, and no worker would take over its operations.
            files.sync_directory(path.parent)
            return claimed
        file.close()  # deleted while this waited: other workers would lock a new file


def check_executor(executor: str) -> str:
    """Return the name of an executor. Raises InvalidInput for an empty or too long name."""
    if not executor or len(_lock_file(Path(), executor).name) > MAX_NAME_BYTES:
        raise InvalidInput(
            f"executor {executor[:80]!r} must be 1 to {MAX_NAME_BYTES} plain characters",
            field="executor",
        )
    return executor


@contextmanager
def lock_model(root: Path, model: str) -> Iterator[None]:
    """Hold a model's lock against other changes of the model, on any host.

    The queue's partitions are not enough on PostgreSQL: while a worker takes an operation, another
    may get an operation of the same model that was queued in between.
    """
    directory = root / "workers" / "models"
    directory.mkdir(parents=True, exist_ok=True)
    with files.locked(directory / f"{check_model(model)}.lock"):
        yield


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
                return f"{self._own.path} was deleted: other workers assume that this one is dead"
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
            try:
                file = _lock_file(self._own.path.parent.parent, executor).open("r+")
            except FileNotFoundError:
                self._log_unknown(executor)
                continue
            with file:
                if _try_lock(file):  # it is dead, and cannot start again before this is done
                    requeued += self._requeue(executor, operations)
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

    def _log_unknown(self, executor: str) -> None:
        """Log once that an executor has no lock file here: it may run with another repository."""
        if executor not in self._unknown:
            self._unknown.add(executor)
            log.error(
                "operations of an unknown worker wait; does it have another repository? "
                "If it is dead, create its lock file",
                executor=executor,
                file=str(_lock_file(self._own.path.parent.parent, executor)),
            )


def _lock_file(root: Path, executor: str) -> Path:
    return root / "workers" / f"{quote(executor, safe='')}.lock"


def _try_lock(file: IO[str]) -> bool:
    """Lock ``file`` without waiting; return True if that succeeded."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
