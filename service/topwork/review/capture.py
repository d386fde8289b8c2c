"""Capture of answered images: a cheap choice in the event loop, decoding and writes in a thread."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import structlog

from topwork.bundle.candidates import DIRECTORY, CandidateReason, delete_expired
from topwork.bundle.review_policy import FILE, ReviewPolicy
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, ImageError, NotFound
from topwork.limits import ServerLimits
from topwork.review.answers import RecentAnswers
from topwork.review.budget import Budget
from topwork.review.offer import Offer
from topwork.review.writer import Writer
from topwork.serving.classify_batch import BatchContent, Finished
from topwork.serving.request_batch import Content
from topwork.telemetry import Telemetry

log = structlog.get_logger(__name__)

POLL_SECONDS = 1.0
"""Raising it delays policies that another server has changed."""

POLL_SHARE = 0.002
"""Share of a core for polling; lowering it makes polling of many models less frequent."""

EXPIRE_SECONDS = 60.0
"""Raising it deletes expired images later."""

WRITE_SHARE = 0.012
"""Raising it keeps images of a burst faster, at the expense of answers: share of each core."""

WRITE_CREDIT = 1.0
"""Raising it keeps more images of a burst at once: seconds of a core, about 100 photos."""

QUEUE_IMAGES = 64
QUEUE_BYTES = 64 * 2**20
"""Most images, and bytes of them, that wait for the thread; more are dropped and counted."""

_Item = tuple[Offer, CandidateReason, Budget]


class Capture:
    """Offers the images of answers to the review queues of their models.

    ``answered`` belongs to one event loop. A thread reads the policies, writes, and deletes what
    has expired. Without a policy that is on it reads nothing but the time of review.json.
    """

    def __init__(
        self,
        repository: Repository,
        answers: RecentAnswers,
        limits: ServerLimits,
        telemetry: Telemetry,
        *,
        cores: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._repository = repository
        self._answers = answers
        self._telemetry = telemetry
        self._writer = Writer(repository, limits, clock=clock)
        self._share = WRITE_SHARE * cores
        self._clock = clock
        self._budgets: dict[str, Budget] = {}
        """Of the models whose policy is on; replaced as a whole."""
        self._stamps: dict[str, Hashable] = {}
        self._policies: dict[str, ReviewPolicy] = {}
        self._lock = threading.Lock()
        self._queue: queue.Queue[_Item] = queue.Queue(QUEUE_IMAGES)
        self._bytes = 0
        self._bytes_lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Read the policies, and start the thread."""
        self._guard(self.refresh)
        self._thread = threading.Thread(target=self._run, name="review", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Drop what is not written yet, and join the thread."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def policies(self) -> Mapping[str, ReviewPolicy]:
        """Return the policies that are on, by model."""
        return {model: budget.policy for model, budget in self._budgets.items()}

    def answered(
        self, finished: Finished, contents: Sequence[BatchContent], *, with_ids: bool
    ) -> tuple[str, ...]:
        """See Reviewer. Takes 20 to 40 us an image if the model's policy is on."""
        manifest, scores = finished.snapshot.manifest, finished.scores
        budget = self._budgets.get(manifest.model)
        if budget is None or scores is None:
            return ()
        now = self._clock()
        best = scores.probabilities.argmax(axis=1)
        highest = np.partition(scores.probabilities, -2, axis=1)[:, -2:].tolist()
        unknowns = [None] * len(best) if scores.unknown is None else scores.unknown.tolist()
        threshold = manifest.chosen.unknown_threshold
        ids = []
        row = -1
        for content, outcome in zip(contents, finished.outcomes, strict=True):
            if isinstance(outcome.result, ImageError):
                ids.append("")
                continue
            row += 1
            if not isinstance(content, Content) or content.pixels:  # there is no file to keep
                ids.append("")
                continue
            unknown = unknowns[row]
            offer = Offer(
                model=manifest.model,
                revision=manifest.revision,
                backbone=finished.snapshot.backbone.info,
                image=content.data,
                embedding=outcome.result.astype(np.float16),
                label=manifest.labels[best[row]],
                probability=min(highest[row][1], 1.0),
                margin=min(highest[row][1] - highest[row][0], 1.0),
                unknown_probability=unknown,
                is_unknown=unknown is not None and threshold is not None and unknown >= threshold,
                time=now,
            )
            self._offer(offer, budget, now)
            ids.append(self._answers.add(offer) if with_ids else "")
        return tuple(ids)

    def refresh(self, model: str | None = None) -> None:
        """Read the policies that have changed, of ``model`` only if it is not None."""
        with self._lock:
            stamps: dict[str, Hashable | None] = {}
            with contextlib.suppress(FileNotFoundError):  # there is no model yet
                stamps = self._repository.stamps([FILE], self._stamps, only=model)
            for name in (self._stamps.keys() if model is None else {model}) - stamps.keys():
                self._forget(name)
            for name, stamp in stamps.items():
                self._read_policy(name, stamp)

    def _offer(self, offer: Offer, budget: Budget, now: float) -> None:
        drawn = budget.random(lambda: offer, now)
        if drawn is not None:
            self._enqueue(drawn, "random", budget)
        if (reason := offer.reason(budget.policy)) is not None:
            kept = budget.useful(offer, now)
            if kept is not None:
                self._enqueue(kept, kept.reason(budget.policy) or reason, budget)

    def _enqueue(self, offer: Offer, reason: CandidateReason, budget: Budget) -> None:
        size = len(offer.image)
        with self._bytes_lock:
            fits = self._bytes + size <= QUEUE_BYTES
            self._bytes += size if fits else 0
        if fits:
            try:
                self._queue.put_nowait((offer, reason, budget))
            except queue.Full:
                self._leave(size)
            else:
                return
        budget.settle()
        self._count("busy")

    def _run(self) -> None:
        expire = 0.0
        credit, spent = WRITE_CREDIT, time.monotonic()
        pause = POLL_SECONDS
        poll = time.monotonic() + pause
        while not self._closing.is_set():
            now = time.monotonic()
            credit, spent = min(WRITE_CREDIT, credit + self._share * (now - spent)), now
            if now >= expire:
                expire = now + EXPIRE_SECONDS
                self._guard(self._delete_expired)
            if now >= poll:
                begun = time.thread_time()
                self._guard(self.refresh)
                pause = max(POLL_SECONDS, (time.thread_time() - begun) / POLL_SHARE)
                poll = time.monotonic() + pause
            if credit <= 0:
                self._closing.wait(min(-credit / self._share + 0.01, 1.0))
                continue
            try:
                item = self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
            begun = time.thread_time()
            self._write(*item)
            credit -= time.thread_time() - begun

    def _write(self, offer: Offer, reason: CandidateReason, budget: Budget) -> None:
        self._leave(len(offer.image))
        result = "error"
        try:
            with self._lock:
                if self._budgets.get(offer.model) is budget:  # otherwise the policy has changed
                    result = self._writer.write(offer, reason, budget)
        except OSError as error:
            result = "disk"
            log.warning("candidate not kept", model=offer.model, error=str(error))
        except (NotFound, ImageError, Corrupt) as error:
            log.warning("candidate not kept", model=offer.model, error=str(error))
        except Exception as error:  # the thread must go on
            log.error("candidate not kept", model=offer.model, error=repr(error))
        finally:
            budget.settle()
            self._count(result)

    def _read_policy(self, model: str, stamp: Hashable) -> None:
        if stamp is None or self._stamps.get(model) == stamp:
            return
        try:
            policy = self._repository.review_policy(model)
        except Corrupt as error:
            log.error("review policy cannot be read", model=model, error=str(error))
            policy = ReviewPolicy()
        except NotFound:  # deleted meanwhile
            self._forget(model)
            return
        self._stamps[model] = stamp
        self._policies[model] = policy
        budgets = dict(self._budgets)
        budgets.pop(model, None)
        if not policy.enabled:
            self._answers.drop(model)
        else:
            budgets[model] = budget = Budget(policy)
            self._writer.count(model, budget)
        self._budgets = budgets

    def _forget(self, model: str) -> None:
        self._stamps.pop(model, None)
        self._policies.pop(model, None)
        if model in self._budgets:
            self._answers.drop(model)
            self._budgets = {name: each for name, each in self._budgets.items() if name != model}

    def _delete_expired(self) -> None:
        self._answers.expire()
        for model, policy in [*self._policies.items()]:
            delete_expired(
                self._repository.storage,
                self._repository.model_key(model, DIRECTORY),
                before=self._repository.storage.now() - policy.keep_seconds,
            )

    def _guard(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # such as a file system that is unavailable for a moment
            log.warning("review queue cannot be read", error=repr(error))

    def _leave(self, size: int) -> None:
        with self._bytes_lock:
            self._bytes -= size

    def _count(self, result: str) -> None:
        self._telemetry.review_images.labels(result).inc()
