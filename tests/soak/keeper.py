"""Keeps the repository as its operator does, and looks whether all in it is sound."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading

from soak.house import House
from soak.ledger import Ledger
from soak.pool import MODELS
from topwork.bundle.maintenance.check import check
from topwork.bundle.manifest import Manifest
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, NotFound

CHECK_PAUSE = 1.0
GC_PAUSE = 10.0
SPARE_HOURS = (0.01, 0.0)
"""In turns; far less than an operator should give: 36 s, and nothing, which costs uploads only."""


class Keeper:
    """Runs gc and fsck beside everything else, and remembers every revision that ever was."""

    def __init__(
        self, repository: Repository, house: House, ledger: Ledger, over: threading.Event
    ) -> None:
        self._repository = repository
        self._house = house
        self._ledger = ledger
        self._over = over
        self._manifests: dict[tuple[str, int], Manifest] = {}
        self._lock = threading.Lock()

    def labels(self, model: str, revision: int) -> tuple[str, ...]:
        """Return the labels of a revision."""
        return self.manifest(model, revision).labels

    def manifest(self, model: str, revision: int) -> Manifest:
        """Return the manifest of a revision, though it may be deleted by now."""
        with self._lock:
            found = self._manifests.get((model, revision))
            if found is None:
                found = self._repository.manifest(model, revision)
                self._manifests[model, revision] = found
            return found

    def remember(self) -> dict[str, list[Manifest]]:
        """Return the manifests of all revisions that were ever published, oldest first."""
        for model in MODELS:
            for revision in self._repository.revisions(model):
                self.manifest(model, revision)
        with self._lock:
            return {
                model: [one for (of, _), one in sorted(self._manifests.items()) if of == model]
                for model in MODELS
            }

    def check(self) -> None:
        """Look again and again whether the repository loads, until it is over."""
        while not self._over.wait(CHECK_PAUSE):
            for problem in check(self._repository):
                if problem.severity == "error":
                    self._ledger.violated(f"fsck: {problem.path}: {problem.text}")
            for model in MODELS:
                try:
                    serving = self._repository.manifest(model, self._repository.serving(model))
                    self._repository.head(serving)
                    self._repository.exemplars(serving.exemplars)
                except (Corrupt, NotFound) as error:
                    self._ledger.violated(f"{model} cannot be loaded: {error}")
            self._ledger.count("checks", "fsck and load beside everything")

    def collect(self) -> None:
        """Run gc again and again until it is over."""
        spared = itertools.cycle(SPARE_HOURS)
        while not self._over.wait(GC_PAUSE):
            self.remember()
            with self._house.swept:
                self.gc("--spare-hours", str(next(spared)))

    def gc(self, *options: str) -> None:
        """Run the command; it must end well."""
        command = [sys.executable, "-m", "topwork.cli", "gc", str(self._repository.root), *options]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            self._ledger.violated(f"gc ended with {ended.returncode}: {ended.stderr}")
        self._ledger.count("checks", "gc")
