"""Which workers live: each holds a lock as long as it does, and the living take over from the dead.

DBOS gives a worker back only what it was doing itself, under its executor's name. What a worker
left that never comes back would stay PENDING, and block its model, for good.
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

LOOK_SECONDS = 2.0
"""How often a worker looks for what dead ones left: the most that a death costs an operation,
besides the step that it cut off."""

MOST_BYTES = 200
"""Of an executor's name, quoted: it is a file's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to work under an executor's name; it ends with the process that holds it."""

    executor: str
    path: Path
    file: IO[str]
    """Holds the lock while it is open."""

    def held(self) -> bool:
        """Return whether it still is what others ask: the file may have been deleted."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self.file.fileno()))
        except FileNotFoundError:
            return False


def claim(root: Path, executor: str, *, on_wait: Callable[[], None] = lambda: None) -> Claim:
    """Return the claim to ``executor``'s name in the repository ``root``, waiting for its holder.

    ``on_wait`` is called if there is one. Raises InvalidInput if it cannot be a file's name.
    """
    path = _lock(root, check_executor(executor))
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = path.open("a")
        if not _locked(file):
            log.info("another worker has this executor's name; waiting", executor=executor)
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        claimed = Claim(executor=executor, path=path, file=file)
        if claimed.held():
            # A worker whose file a power cut took away would not be taken over.
            files.sync_directory(path.parent)
            return claimed
        file.close()  # deleted while this waited: nobody else would ask for it


def check_executor(executor: str) -> str:
    """Return the name of an executor. Raises InvalidInput if it cannot be a file's name."""
    if not executor or len(_lock(Path(), executor).name) > MOST_BYTES:
        raise InvalidInput(
            f"executor {executor[:80]!r} must be 1 to {MOST_BYTES} plain characters",
            field="executor",
        )
    return executor


@contextmanager
def alone(root: Path, model: str) -> Iterator[None]:
    """Hold a model's lock; whoever changes the same model, on any host, waits.

    The queue alone does not ensure it on PostgreSQL: a worker that looks for work while another
    takes some may be given an operation that came in between and goes first.
    """
    directory = root / "workers" / "models"
    directory.mkdir(parents=True, exist_ok=True)
    with files.locked(directory / f"{check_model(model)}.lock"):
        yield


class Takeover:
    """Looks for operations that no worker does."""

    def __init__(self, own: Claim, client: DBOSClient, running: Collection[str]) -> None:
        self._own = own
        self._client = client
        self._running = running
        self._stray: set[str] = set()
        self._unknown: set[str] = set()

    def recover(self) -> list[str]:
        """Put back what earlier workers of this name were doing; before DBOS is launched.

        DBOS would, too, but for operations of another application version, which block their
        models for good.
        """
        return self._put_back(self._own.executor, self._pending()[self._own.executor])

    def watch(self) -> str:
        """Look, for good; return only if this worker must end at once, and why."""
        away = False
        while True:
            time.sleep(LOOK_SECONDS)
            if not self._own.held():
                return f"{self._own.path} was deleted: others take this worker for dead"
            try:
                self.put_back()
                stray = self.stray()
            except (SQLAlchemyError, error.DBOSException, OSError) as failed:
                if not away:
                    log.warning("cannot look for dead workers' operations", error=str(failed))
                away = True
                continue
            away = False
            if stray:
                return f"operations {sorted(stray)} are this worker's, which does not do them"

    def put_back(self) -> list[str]:
        """Put what dead workers were doing back into the queue; return the operations' ids."""
        back = []
        for executor, operations in self._pending().items():
            if executor == self._own.executor:
                continue
            try:
                file = _lock(self._own.path.parent.parent, executor).open("r+")
            except FileNotFoundError:
                self._say_unknown(executor)
                continue
            with file:
                if _locked(file):  # it is dead, and cannot come back before this is done
                    back += self._put_back(executor, operations)
        return back

    def stray(self) -> set[str]:
        """Return this worker's operations that it did not do when it looked twice in a row.

        A database that dies just when it gives an operation away leaves one such.
        """
        # In this order: one that starts meanwhile is none.
        now = self._pending()[self._own.executor] - set(self._running)
        before, self._stray = self._stray, now
        return now & before

    def _put_back(self, executor: str, operations: set[str]) -> list[str]:
        # Only what is the dead one's still: another may have put it back, and a third one do it.
        # Not DBOSClient.resume_workflow: it puts back whatever it is given, cancelled or not.
        put_back = self._client._sys_db.reenqueue_for_recovery  # noqa: SLF001  # see above
        back = [one for one in sorted(operations) if put_back(one, [executor], QUEUE)]
        if back:
            log.warning("took over from a dead worker", executor=executor, ids=back)
        return back

    def _pending(self) -> defaultdict[str, set[str]]:
        """Return the ids of the operations that somebody does, by executor."""
        found = self._client.list_workflows(
            name=CHANGE, status="PENDING", load_input=False, load_output=False
        )
        pending: defaultdict[str, set[str]] = defaultdict(set)
        for one in found:
            pending[one.executor_id or ""].add(one.workflow_id)
        return pending

    def _say_unknown(self, executor: str) -> None:
        """Say once that an executor has no lock here: it may live, in another directory."""
        if executor not in self._unknown:
            self._unknown.add(executor)
            log.error(
                "operations of an unknown worker wait; does it have another repository? "
                "If it is dead, create its lock file",
                executor=executor,
                file=str(_lock(self._own.path.parent.parent, executor)),
            )


def _lock(root: Path, executor: str) -> Path:
    return root / "workers" / f"{quote(executor, safe='')}.lock"


def _locked(file: IO[str]) -> bool:
    """Lock ``file`` if nobody has; return whether it is."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
