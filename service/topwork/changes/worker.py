"""Worker process: runs operations as DBOS workflows, beside the server or alone.

It may be killed at any moment: the next worker, of the same name or another, repeats only the
interrupted step, and steps are idempotent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import structlog
from dbos import DBOS, DBOSPortableJSONSerializer, error
from sqlalchemy.exc import SQLAlchemyError

from topwork.bundle.documents import document, from_data, to_data
from topwork.bundle.storage.locks import LockLost
from topwork.bundle.storage.storage import ForeignName, Unreachable
from topwork.changes import database
from topwork.changes.executors import Leases, Takeover, claim, lock_model
from topwork.changes.jobs import (
    ChangeOutcome,
    ChangeResult,
    ChangeStage,
    Conflict,
    Failure,
    Job,
    Progress,
    StageSeconds,
)
from topwork.changes.new_exemplars import NewExemplars
from topwork.changes.queue import APPLICATION_VERSION, PROGRESS, RESULT
from topwork.changes.retrain import OVERTAKEN, Candidate, Trainer
from topwork.config import WorkerConfig
from topwork.errors import Corrupt, TopworkError, Unavailable
from topwork.runtime import logs, process
from topwork.runtime.supervisor import GAVE_UP

log = structlog.get_logger(__name__)

ATTEMPTS = 5
"""Raising it repeats a change more often when fits or rollbacks overtake it."""

MOST_RECOVERIES = 1_000_000
"""Raising it repeats an operation after more deaths of its worker."""

PROGRESS_SECONDS = 0.1
"""Raising it reports progress less often, with fewer database writes."""

PATIENCE_SECONDS = 600.0
"""Raising it lets changes survive a longer outage of the store of a bucket."""

RETRY_SECONDS = 1.0

OnWorking = Callable[[bool], None]
"""Callback: True once this worker, or another of its name, runs changes; False until then."""


def run(parent: Connection, config: WorkerConfig) -> None:
    """Work until the parent dies or closes its end of the pipe ``parent``.

    The pipe sends it the values of ``OnWorking``.
    """
    process.configure()
    logs.configure(config.log_format)
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    work(config, parent.send)


def run_alone(config: WorkerConfig) -> None:
    """Work until SIGTERM or SIGINT. The next worker repeats the interrupted steps."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    database.prepare(config.database or database.database_url(config.repository))
    work(config, lambda _working: None)


def work(config: WorkerConfig, on_working: OnWorking) -> None:
    """Run operations for ever; exit with GAVE_UP if that is impossible for now.

    Of several workers with one executor name, one works and the others wait for its end. Raises
    InvalidInput if the name is invalid.
    """
    process.set_priority(config.worker_priority)  # Classify comes first
    try:
        reason = _work(config, on_working)
    except (OSError, SQLAlchemyError, error.DBOSException) as failed:
        reason = database.cause_of(failed)
    except Unavailable as failed:
        reason = str(failed)
    log.error("worker gives up", error=reason)
    os._exit(GAVE_UP)


def _work(config: WorkerConfig, on_working: OnWorking) -> str:
    """Run operations; return the reason if this process must exit."""
    url = config.database or database.database_url(config.repository)
    leases = Leases(config.repository, url)
    claimed = claim(leases, config.executor, on_wait=lambda: on_working(True))
    on_working(False)
    repository = config.open_repository(publishes=True)
    database.note_database(repository.storage, url)
    try:
        for key in repository.sweep():
            log.info("swept", key=key)
    except ForeignName as error:
        log.warning("leftovers cannot be listed", error=str(error))
    DBOS(
        config={
            "name": database.APPLICATION,
            "system_database_url": url,
            "executor_id": config.executor,
            "application_version": APPLICATION_VERSION,
            "serializer": DBOSPortableJSONSerializer(),
            "log_level": "WARNING",
        }
    )
    logs.adopt("dbos")
    running: set[str] = set()
    _register(Trainer(repository, cores=config.cores, limits=config.limits), leases, running)
    takeover = Takeover(claimed, database.connect(url), running)
    takeover.recover()
    DBOS.launch()
    log.info("worker ready", repository=str(repository.storage), executor=config.executor)
    on_working(True)
    return takeover.watch()


def _exit_with_parent(parent: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        parent.recv_bytes()
    os._exit(0)  # the next worker repeats the interrupted steps


def _register(trainer: Trainer, leases: Leases, running: set[str]) -> None:
    """Register the workflow and its steps with DBOS, which stores the result of each step.

    ``running`` has the ids of the operations that run in this process.
    """

    def embed(job: Any) -> NewExemplars:
        return trainer.embed(from_data(job, Job), _Reporter("embedding"))

    def solve(job: Any, new: Any) -> Candidate:
        added = from_data(new, NewExemplars)
        _set_progress(Progress(stage="solving", conflicts=added.conflicts))
        return trainer.solve(from_data(job, Job), added, _workflow_id())

    def serve(job: Any, data: Any, new: Any) -> None:
        result = from_data(data, ChangeResult)
        _set_progress(Progress(stage="publishing", conflicts=result.conflicts))
        # Stored before the pointer moves: if this process dies after that, a cancel comes too late,
        # and this is the operation's result.
        DBOS.set_event(RESULT, data)
        if result.revision:
            trainer.serve(from_data(job, Job), result.revision, _workflow_id())
        else:
            trainer.keep(from_data(job, Job), from_data(new, NewExemplars), _workflow_id())

    embed_step, solve_step, serve_step = _step(embed), _step(solve), _step(serve)

    def attempt(data: Any, job: Job, check: Callable[[], None]) -> ChangeResult:
        embedded = embed_step(data)
        solved = solve_step(data, embedded.value)
        candidate = from_data(solved.value, Candidate)
        if candidate.rejected is not None:
            raise _StepFailed(candidate.rejected)
        seconds = StageSeconds(
            queued=embedded.started - job.accepted,
            embedding=embedded.seconds,
            solving=solved.seconds,
        )
        result = replace(candidate.result, seconds=seconds)
        if not candidate.published:
            return result
        check()
        served = serve_step(data, to_data(result), embedded.value)
        return replace(result, seconds=replace(seconds, publishing=served.seconds))

    @DBOS.workflow(name=database.CHANGE, max_recovery_attempts=MOST_RECOVERIES)
    def change(data: Any) -> Any:
        try:
            job = from_data(data, Job)
            with _listed_in(running), lock_model(leases, job.model) as check:
                return to_data(replace(attempts(data, job, check), ended=time.time()))
        except Corrupt as failed:  # a newer version accepted it, or ran a step
            return to_data(ChangeOutcome(failure=_failure(failed)))
        except SQLAlchemyError:
            log.exception("database cannot be used", id=DBOS.workflow_id)
            os._exit(GAVE_UP)  # the next worker continues after the last step
        except LockLost:
            log.exception("the model's lock cannot be held", id=DBOS.workflow_id)
            os._exit(GAVE_UP)
        except OSError as failed:  # from the model's lock: steps store their own
            return to_data(ChangeOutcome(failure=_storage_failure(failed)))

    def attempts(data: Any, job: Job, check: Callable[[], None]) -> ChangeOutcome:
        for again in reversed(range(ATTEMPTS)):
            try:
                result = attempt(data, job, check)
            except _StepFailed as failed:
                failure = failed.failure
                if again and failure.reason in OVERTAKEN:
                    log.info("overtaken", id=DBOS.workflow_id, model=job.model)
                    continue
                log.warning("operation failed", id=DBOS.workflow_id, error=failure.message)
                return ChangeOutcome(failure=failure)
            log.info(
                "changed",
                kind=job.kind,
                model=job.model,
                label=job.label or ", ".join(job.labels),
                revision=result.revision,
            )
            return ChangeOutcome(result=result)
        raise AssertionError("the last attempt returns")


@contextlib.contextmanager
def _listed_in(running: set[str]) -> Iterator[None]:
    operation = _workflow_id()
    running.add(operation)
    try:
        yield
    finally:
        running.discard(operation)


def _workflow_id() -> str:
    operation = DBOS.workflow_id
    assert operation is not None, "a step runs in a workflow"
    return operation


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class _StepDone:
    """The result of a step as DBOS stores it, so that a repeated workflow gets the same."""

    value: Any = None
    failure: Failure | None = None
    started: float
    """Seconds since 1970."""
    seconds: float


class _StepFailed(Exception):
    """The expected error of a step."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def _step(work: Callable[..., Any]) -> Callable[..., _StepDone]:
    """Make ``work`` a step. Its expected errors are values, because DBOS stores no classes."""

    @DBOS.step(name=work.__name__)
    def run_step(*arguments: Any) -> Any:
        started = time.time()
        value = failure = None
        try:
            value = to_data(_patiently(work, *arguments))
        except TopworkError as failed:
            failure = _failure(failed)
        except OSError as failed:  # such as a full disk
            failure = _storage_failure(failed)
        seconds = time.time() - started
        return to_data(_StepDone(value=value, failure=failure, started=started, seconds=seconds))

    def call(*arguments: Any) -> _StepDone:
        done = from_data(run_step(*arguments), _StepDone)
        if done.failure is not None:
            raise _StepFailed(done.failure)
        return done

    return call


def _patiently(work: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of ``work``, repeated while the store of a bucket cannot be reached."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return work(*arguments)
        except Unreachable as failed:
            if time.monotonic() > end:
                raise
            log.warning("bucket cannot be reached", id=DBOS.workflow_id, error=str(failed))
        time.sleep(RETRY_SECONDS)


def _failure(failed: TopworkError) -> Failure:
    return Failure(kind=type(failed).__name__, reason=failed.reason, message=str(failed))


def _storage_failure(failed: OSError) -> Failure:
    """Log an error of the repository, and return it without paths."""
    log.error("repository cannot be used", id=DBOS.workflow_id, exc_info=failed)
    text = f"the repository cannot be used: {failed.strerror}"
    return Failure(kind="Unavailable", reason="STORAGE", message=text)


class _Reporter:
    """Reports counts as progress events: always the last, others every PROGRESS_SECONDS."""

    def __init__(self, stage: ChangeStage) -> None:
        self._stage: ChangeStage = stage
        self._next = 0.0

    def __call__(self, done: int, total: int, conflicts: tuple[Conflict, ...] = ()) -> None:
        now = time.monotonic()
        if now >= self._next or done == total:
            self._next = now + PROGRESS_SECONDS
            _set_progress(Progress(stage=self._stage, done=done, total=total, conflicts=conflicts))


def _set_progress(progress: Progress) -> None:
    DBOS.set_event(PROGRESS, to_data(progress))
