"""Copies of the candidates of a review queue, with those that are gone and their times."""

from __future__ import annotations

import contextlib
import math

from topwork.bundle import candidates
from topwork.bundle.maintenance.copy_blobs import Tally
from topwork.bundle.maintenance.copy_state import ModelState, reading
from topwork.bundle.model_directories import read_policy
from topwork.bundle.store import Repository
from topwork.errors import Corrupt
from topwork.storage.files import sha256
from topwork.storage.storage import Entry


def copy_candidates(
    source: Repository, target: Repository, state: ModelState, tally: Tally, *, dry_run: bool
) -> None:
    """Copy the candidates of a model that have not expired, without claims.

    A candidate that is gone in the source goes in the target, and the other way round stays gone,
    unless the source stored it again since.
    """
    _Queue(source, target, state, tally, dry_run=dry_run).copy()


class _Queue:
    """The review queue of a model in both repositories."""

    def __init__(
        self,
        source: Repository,
        target: Repository,
        state: ModelState,
        tally: Tally,
        *,
        dry_run: bool,
    ) -> None:
        self._source = source.storage
        self._target = target.storage
        self._repository = target
        self._model = state.model
        self._model_directory = state.directory
        self._directory = f"{state.directory}/{candidates.DIRECTORY}"
        self._tally = tally
        self._dry_run = dry_run

    def copy(self) -> None:
        """Copy all of it."""
        own = candidates.list_directory(self._source, self._directory)
        if not own.candidates and not own.gone:
            return
        there = candidates.list_directory(self._target, self._directory)
        expired = self._source.now() - self._keep_seconds()
        kept = {name: entry for name, entry in own.candidates.items() if entry.time >= expired}
        gone = {name: entry for name, entry in own.gone.items() if entry.time >= expired}
        self._tally.expect(len(kept))
        if not kept and not gone:
            return
        with contextlib.ExitStack() as stack:
            if not self._dry_run:
                stack.enter_context(self._repository.locked(self._model))
                self._target.make_directory(self._directory)
            for digest, entry in sorted(gone.items()):
                if digest not in kept and not self._dry_run:
                    self._retire(digest, entry, there)
            for digest, entry in sorted(kept.items()):
                key = f"{self._directory}/{digest}.npz"
                try:
                    self._put(digest, entry, there)
                except Corrupt as error:
                    if self._source.exists(key):  # otherwise it was retired meanwhile
                        self._tally.fail(key, str(error))
                self._tally.advance()

    def _put(self, digest: str, entry: Entry, there: candidates.Listing) -> None:
        """Copy a candidate. Raises Corrupt if it is damaged."""
        key = f"{self._directory}/{digest}.npz"
        left = there.gone.get(digest)
        if left is not None and left.time_ns >= entry.time_ns:
            self._tally.count("candidate", None)
            return
        with reading():
            found, image = candidates.read_with_image(self._source, key)
            if sha256(image) != found.record.content:
                raise Corrupt(f"the image of {key} was changed")
            content = self._source.read(key)
        if digest in there.candidates:
            with contextlib.suppress(Corrupt):
                if self._target.read(key) == content:
                    self._tally.count("candidate", None)
                    return
        if not self._dry_run:
            if left is not None:
                self._target.delete(f"{self._directory}/{digest}.gone")
            self._target.write_at(key, content, entry.time_ns)
        self._tally.count("candidate", len(content))

    def _retire(self, digest: str, entry: Entry, there: candidates.Listing) -> None:
        """Let a candidate be gone in the target."""
        if digest not in there.gone:
            self._target.write_at(f"{self._directory}/{digest}.gone", b"", entry.time_ns)
        if digest in there.candidates:
            self._target.delete(f"{self._directory}/{digest}.npz")

    def _keep_seconds(self) -> float:
        """Return the age at which candidates expire; infinite if the policy is damaged."""
        with contextlib.suppress(Corrupt, OSError):
            return read_policy(self._source, self._model_directory).keep_seconds
        return math.inf
