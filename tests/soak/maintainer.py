"""Maintenance during the soak: gc, fsck, and a history of all revisions."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading

from soak.ledger import Ledger
from soak.pool import MODELS
from soak.supervisor import Supervisor
from topwork.bundle.maintenance.check import check
from topwork.bundle.manifest import Manifest
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, NotFound

CHECK_PAUSE = 1.0
GC_PAUSE = 10.0
SPARE_HOURS = (0.01, 0.0)
"""Used alternately; far shorter than in production: 36 s, and 0, which makes uploads fail."""


class Maintainer:
    """Runs gc and fsck during the soak, and records every published revision."""

    def __init__(
        self,
        repository: Repository,
        supervisor: Supervisor,
        ledger: Ledger,
        stop: threading.Event,
    ) -> None:
        self._repository = repository
        self._supervisor = supervisor
        self._ledger = ledger
        self._stop = stop
        self._manifests: dict[tuple[str, int], Manifest] = {}
        self._lock = threading.Lock()

    def labels(self, model: str, revision: int) -> tuple[str, ...]:
        """Return the labels of a revision."""
        return self.manifest(model, revision).labels

    def manifest(self, model: str, revision: int) -> Manifest:
        """Return the manifest of a revision, even if gc deleted it since."""
        with self._lock:
            manifest = self._manifests.get((model, revision))
        if manifest is None:
            with self._supervisor.place.steady:
                manifest = self._repository.manifest(model, revision)
            with self._lock:
                self._manifests[model, revision] = manifest
        return manifest

    def all_manifests(self) -> dict[str, list[Manifest]]:
        """Return the manifests of all revisions ever published, oldest first."""
        for model in MODELS:
            for revision in self._repository.revisions(model):
                self.manifest(model, revision)
        with self._lock:
            return {
                model: [
                    manifest for (of, _), manifest in sorted(self._manifests.items()) if of == model
                ]
                for model in MODELS
            }

    def check(self) -> None:
        """Check repeatedly that fsck finds no error and the serving revisions load."""
        while not self._stop.wait(CHECK_PAUSE):
            with self._supervisor.place.steady:
                self._check()

    def _check(self) -> None:
        for problem in check(self._repository):
            if problem.severity == "error":
                self._ledger.fail(f"fsck: {problem.path}: {problem.text}")
        for model in MODELS:
            try:
                serving = self._repository.manifest(model, self._repository.serving(model))
                self._repository.head(serving)
                self._repository.exemplars(serving.exemplars)
            except (Corrupt, NotFound) as error:
                self._ledger.fail(f"{model} cannot be loaded: {error}")
        self._ledger.count("checks", "fsck and load during the soak")

    def collect(self) -> None:
        """Run gc repeatedly."""
        spare_hours = itertools.cycle(SPARE_HOURS)
        while not self._stop.wait(GC_PAUSE):
            with self._supervisor.cleanup_lock, self._supervisor.place.steady:
                self.all_manifests()
                self.gc("--spare-hours", str(next(spare_hours)))

    def gc(self, *options: str) -> None:
        """Run gc; a failure is a violation."""
        place = self._supervisor.place
        if place.database:
            options = (*options, "--database", place.database)
        command = [sys.executable, "-m", "topwork.cli", "gc", str(place.location), *options]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            self._ledger.fail(f"gc ended with {ended.returncode}: {ended.stderr}")
        self._ledger.count("checks", "gc")
