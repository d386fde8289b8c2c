"""An earlier version beside this one, on one database and repository, as in a rolling upgrade.

The earlier version is the newest tag, or EARLIER without one, or what the environment variable
TOPWORK_EARLIER names. It is taken from git's history, and runs with this version's packages.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import postgres
from support.pictures import pictures
from support.servers import Running, eventually

from topwork import Client, result
from topwork.bundle.store import Repository

ROOT = Path(__file__).parents[2]
EARLIER = "3cf41a286556fd63b40d49856dfb7a2ed6b9f5f2"
"""A commit before repositories in buckets and inputs other than images."""
LABELS = ("violet", "white", "zircon")
PHOTOS = {
    label: [(f"{label}-{n}.png", content) for n, content in enumerate(pictures(label, 12))]
    for label in LABELS
}


def git(*arguments: str) -> bytes:
    """Return what git prints; raises CalledProcessError, and OSError without git."""
    found = shutil.which("git")
    if found is None:
        raise FileNotFoundError("git")
    return subprocess.run([found, *arguments], cwd=ROOT, capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of the earlier version's processes."""
    wanted = os.environ.get("TOPWORK_EARLIER", "")
    try:
        with contextlib.suppress(subprocess.CalledProcessError):  # no tag
            wanted = wanted or git("describe", "--tags", "--abbrev=0", "HEAD^").decode().strip()
        archive = git("archive", wanted or EARLIER, "service")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"git has no commit {wanted or EARLIER} here: the history is incomplete")
    directory = tmp_path_factory.mktemp("earlier")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        # Python before 3.11.4 has no data_filter.
        files.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        files.extractall(directory)  # noqa: S202 # our own archive
    environment = {"PYTHONPATH": str(directory / "service")}
    program = [sys.executable, "-c", "import topwork; print(topwork.__file__)"]
    imported = subprocess.run(
        program, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    assert imported.stdout.startswith(str(directory))
    return environment


@pytest.fixture
def url() -> Iterator[str]:
    """Yield the URL of an empty database."""
    with postgres.running() as cluster:
        yield cluster.new_database()


@contextlib.contextmanager
def process(
    kind: str, repository: Repository, url: str, environment: dict[str, str]
) -> Iterator[Running]:
    """Run a server without a worker, or a worker, of either version."""
    command = [sys.executable, "-m", "topwork.cli", kind, "--repository", str(repository.root)]
    command += ["--database", url, "--log-format", "json"]
    if kind == "serve":
        command += ["--no-worker", "--address", "127.0.0.1:0", "--provider", "cpu"]
    else:
        command += ["--executor", "earlier" if environment else "this"]
    started = Running(command, repository.root, environment)
    try:
        started.log_entry("ready" if kind == "serve" else "worker ready")
        yield started
    finally:
        started.close()


def add(client: Client, label: str) -> int:
    """Add a class and return its revision."""
    client.add_class("colours", label, PHOTOS[label])
    wanted = f'label = "{label}" AND done = true'
    return result(eventually(lambda: next(client.operations(wanted), None))).revision.revision


def answers_of(client: Client, revision: int) -> list[dict[str, float]]:
    """Wait until a server serves a revision, and return the probabilities of all photos."""

    def serves() -> bool:
        return client.classify("colours", photos[:1]).revision == revision

    photos = [content for photos in PHOTOS.values() for _, content in photos]
    eventually(serves)
    assert client.model("colours").serving_revision.revision == revision
    return [dict(image.predictions) for image in client.classify("colours", photos).results]


def test_two_versions_serve_and_change_one_repository(
    colours: Repository, url: str, earlier: dict[str, str]
) -> None:
    """Servers of both versions follow the workers of both, and answer alike."""
    with (
        process("serve", colours, url, earlier) as old_server,
        process("serve", colours, url, {}) as new_server,
        Client(old_server.address) as old,
        Client(new_server.address) as new,
    ):

        def check_both_serve(revision: int) -> None:
            ours, theirs = (answers_of(client, revision) for client in (old, new))
            for probabilities, others in zip(ours, theirs, strict=True):
                assert probabilities == pytest.approx(others, abs=1e-6)

        with process("worker", colours, url, earlier):
            assert add(new, "violet") == 2
            check_both_serve(2)
            with process("worker", colours, url, {}):
                assert add(old, "white") == 3
        check_both_serve(3)
        with process("worker", colours, url, {}):
            assert add(old, "zircon") == 4
        check_both_serve(4)
        old.rollback("colours")
        check_both_serve(3)
        new.rollback("colours", revision=2)
        check_both_serve(2)
        assert old.model("colours").moves == new.model("colours").moves
        assert [operation.name for operation in old.operations()] == [
            operation.name for operation in new.operations()
        ]
