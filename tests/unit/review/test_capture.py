"""Capture: policies of the disk, dropped images, and the end of the thread."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support import servers, tiny
from support.offers import offer
from support.pictures import pictures

from topwork.bundle.review_policy import ReviewPolicy
from topwork.bundle.store import Repository
from topwork.limits import DEFAULT_LIMITS
from topwork.review import capture as module
from topwork.review.answers import RecentAnswers
from topwork.review.capture import Capture
from topwork.telemetry import Telemetry

ON = ReviewPolicy(enabled=True, images_per_day=2_000, random_share=0)
LIMITS = replace(DEFAULT_LIMITS, min_free_bytes=0, min_free_inodes=0)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository with a model ``colours``."""
    return tiny.repository(tmp_path_factory.mktemp("published") / "repository").root


@pytest.fixture
def repository(published: Path, tmp_path: Path) -> Repository:
    """Return a copy of the repository."""
    return Repository(Path(shutil.copytree(published, tmp_path / "repository")))


@pytest.fixture
def telemetry() -> Telemetry:
    """Return metrics."""
    return Telemetry()


@pytest.fixture
def capture(repository: Repository, telemetry: Telemetry) -> Iterator[Capture]:
    """Yield a capture whose thread does not run yet."""
    made = Capture(repository, RecentAnswers(), LIMITS, telemetry, cores=2)
    yield made
    made.close()


def counted(telemetry: Telemetry, result: str) -> float:
    """Return the number of images with this result."""
    return float(telemetry.review_images.labels(result)._value.get())


def test_policy_is_followed_when_its_file_changes(repository: Repository, capture: Capture) -> None:
    """On, off, damaged and deleted; a policy that cannot be read is off."""
    path = (repository.root / repository.serving_key("colours")).with_name("review.json")
    found = []
    for content in (ON, replace(ON, enabled=False), ON, None):
        if content is None:
            path.write_bytes(b"{")
        else:
            repository.set_review_policy("colours", content)
        capture.refresh()
        found.append([*capture.policies()])
    assert found == [["colours"], [], ["colours"], []]
    repository.set_review_policy("colours", ON)
    capture.refresh("colours")
    path.unlink()
    capture.refresh()
    assert not capture.policies()


def test_images_beyond_the_queue_are_dropped_and_counted(
    repository: Repository,
    capture: Capture,
    telemetry: Telemetry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The event loop never waits; the thread writes those that fit, and then there is room."""
    monkeypatch.setattr(module, "QUEUE_BYTES", 3 * len(pictures("violet", 1)[0]) + 500)
    repository.set_review_policy("colours", ON)
    capture.refresh()
    budget = capture._budgets["colours"]
    images = [
        replace(offer(), image=content, time=time.time()) for content in pictures("violet", 6)
    ]
    for image in images:
        capture._offer(image, budget, time.time())
    assert counted(telemetry, "busy") == 3
    capture.start()
    servers.eventually(lambda: counted(telemetry, "kept") == 3)
    capture._offer(images[5], budget, time.time())
    servers.eventually(lambda: counted(telemetry, "kept") == 4)


def test_full_disk_is_counted_and_the_thread_goes_on(
    repository: Repository,
    capture: Capture,
    telemetry: Telemetry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An image that cannot be written is dropped, and later ones are kept."""
    repository.set_review_policy("colours", ON)
    capture.start()
    budget = capture._budgets["colours"]
    first, second = (
        replace(offer(), image=content, time=time.time()) for content in pictures("violet", 2)
    )
    with monkeypatch.context() as patch:
        patch.setattr(
            "topwork.review.writer.CandidateStore.put",
            lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")),
        )
        capture._offer(first, budget, time.time())
        servers.eventually(lambda: counted(telemetry, "disk") == 1)
    capture._offer(second, budget, time.time())
    servers.eventually(lambda: counted(telemetry, "kept") == 1)


def test_start_deletes_what_expired_while_no_server_ran(
    repository: Repository, capture: Capture, telemetry: Telemetry
) -> None:
    """Also if the policy is off by now."""
    repository.set_review_policy("colours", ON)
    capture.start()
    image = replace(offer(), image=pictures("violet", 1)[0], time=time.time())
    capture._offer(image, capture._budgets["colours"], time.time())
    servers.eventually(lambda: counted(telemetry, "kept") == 1)
    capture.close()
    (path,) = (
        (repository.root / repository.serving_key("colours")).with_name("review").glob("*.npz")
    )
    os.utime(path, (time.time() - ON.keep_seconds - 1,) * 2)
    repository.set_review_policy("colours", replace(ON, enabled=False))
    later = Capture(repository, RecentAnswers(), LIMITS, telemetry, cores=2)
    later.start()
    try:
        servers.eventually(lambda: not path.exists())
    finally:
        later.close()
