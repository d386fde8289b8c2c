"""Writer of candidates: what is kept, what is left out, and what remains on the disk."""

from __future__ import annotations

import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import disks, tiny
from support.offers import offer
from support.pictures import encode, picture, pictures

from topwork.bundle.candidates import CandidateStore, list_directory
from topwork.bundle.maintenance.check import check
from topwork.bundle.maintenance.garbage import collect
from topwork.bundle.review_policy import ReviewPolicy
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, NotFound, QuotaExceeded
from topwork.limits import DEFAULT_LIMITS, ServerLimits
from topwork.review.budget import Budget
from topwork.review.offer import Offer
from topwork.review.writer import Writer, correct

LIMITS = replace(DEFAULT_LIMITS, min_free_bytes=0, min_free_inodes=0)
VIOLETS = pictures("violet", 8)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository with a model ``colours``."""
    return tiny.repository(tmp_path_factory.mktemp("published") / "repository").root


@pytest.fixture
def repository(published: Path, tmp_path: Path) -> Repository:
    """Return a copy of the repository."""
    return Repository(Path(shutil.copytree(published, tmp_path / "repository")))


@pytest.fixture
def writer(repository: Repository) -> Writer:
    """Return a writer."""
    return make(repository)


def make(repository: Repository, limits: ServerLimits = LIMITS) -> Writer:
    """Return a writer whose clock shows now."""
    return Writer(repository, limits, clock=time.time)


def image(content: bytes) -> Offer:
    """Return an offer of an encoded image."""
    return replace(offer(), image=content, time=time.time())


def budget(**values: float) -> Budget:
    """Return a budget."""
    return Budget(ReviewPolicy(enabled=True, **values))  # type: ignore[arg-type]  # fields by name


def store(repository: Repository) -> CandidateStore:
    """Return the candidates of the model."""
    return CandidateStore(repository, "colours")


def only(repository: Repository) -> str:
    """Return the digest of the only candidate."""
    (digest,) = store(repository).listing().candidates
    return digest


def test_candidate_is_read_as_it_was_written(repository: Repository, writer: Writer) -> None:
    """Image, answer, embedding and thumbnail survive; the file has no other facts."""
    given = replace(image(VIOLETS[0]), embedding=np.arange(tiny.WIDTH, dtype=np.float16))
    assert writer.write(given, "uncertain", budget()) == "kept"
    found = store(repository).read(only(repository))
    assert store(repository).image(found.digest) == VIOLETS[0]
    assert (found.record.reason, found.record.label) == ("uncertain", "blue")
    assert (found.embedding == given.embedding).all()
    assert found.preview[:2] == b"\xff\xd8"


def test_copies_are_kept_once(repository: Repository, writer: Writer) -> None:
    """The same pixels, and a recompressed copy of a photo, are duplicates."""
    noise = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize((64, 64), Image.Resampling.BICUBIC)
    results = [
        writer.write(image(content), "unknown", budget())
        for content in (
            encode(photo),
            encode(photo, "BMP"),
            encode(photo, "JPEG", quality=90),
            VIOLETS[0],
        )
    ]
    assert results == ["kept", "duplicate", "duplicate", "kept"]
    assert len(store(repository).listing().candidates) == 2


def test_training_image_is_not_kept(writer: Writer) -> None:
    """An image that the serving revision has as an example needs no label."""
    assert writer.write(image(picture("blue", 0)), "uncertain", budget()) == "example"


def test_discarded_image_is_not_kept_again_and_leaves_nothing(
    repository: Repository, writer: Writer
) -> None:
    """Only an empty file with the digest remains, and it counts as an image of the day."""
    writer.write(image(VIOLETS[0]), "unknown", budget())
    digest, candidates = only(repository), store(repository)
    with candidates.writing():
        assert candidates.retire(digest)
        assert not candidates.retire(digest)
    assert [
        (path.name, path.stat().st_size)
        for path in (repository.root / candidates.directory).iterdir()
    ] == [(f"{digest}.gone", 0)]
    assert writer.write(image(VIOLETS[0]), "unknown", budget()) == "duplicate"
    day = budget(images_per_day=1)
    assert writer.write(image(VIOLETS[1]), "unknown", day) == "budget"


def test_two_servers_share_the_budget_of_a_day(repository: Repository) -> None:
    """Writers that do not know of each other keep no more images than the policy says."""
    writers = [make(repository), make(repository)]
    results: list[str] = []

    def write(number: int) -> None:
        results.extend(
            writers[number].write(image(content), "unknown", day) for content in VIOLETS[number::2]
        )

    day = budget(images_per_day=5)
    threads = [threading.Thread(target=write, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["budget"] * 3 + ["kept"] * 5
    assert len(store(repository).listing().candidates) == 5


def test_full_queue_keeps_no_more(repository: Repository, writer: Writer) -> None:
    """The quota counts all candidates; a correction says so, as an error."""
    large = encode(Image.effect_noise((1100, 1100), 90))
    assert writer.write(image(large), "unknown", budget(max_bytes=2**20)) == "quota"
    policy = ReviewPolicy(enabled=True, max_bytes=2**20)
    with pytest.raises(QuotaExceeded, match="queue of 'colours' is full"):
        correct(repository, image(large), "violet", policy, LIMITS)
    assert not store(repository).listing().candidates


def test_corrections_have_a_limit_of_their_own(repository: Repository) -> None:
    """As many as images a day; a repeated correction replaces the label."""
    policy = ReviewPolicy(enabled=True, images_per_day=1)
    first = correct(repository, image(VIOLETS[0]), "violet", policy, LIMITS)
    again = correct(repository, image(VIOLETS[0]), "purple", policy, LIMITS)
    assert again.digest == first.digest
    assert store(repository).read(first.digest).record.suggested_label == "purple"
    with pytest.raises(QuotaExceeded, match=r"1 answers .* were corrected today"):
        correct(repository, image(VIOLETS[1]), "violet", policy, LIMITS)


def test_full_disk_keeps_nothing(repository: Repository) -> None:
    """The free space that uploads leave stays free."""
    writer = make(repository, replace(LIMITS, min_free_bytes=2**60))
    assert writer.write(image(VIOLETS[0]), "unknown", budget()) == "disk"


@pytest.mark.slow
def test_disk_without_space_leaves_no_broken_file(published: Path, tmp_path: Path) -> None:
    """A write that fails is an OSError, after which the directory has no candidate."""
    hopeful = replace(LIMITS, min_free_bytes=-(2**30))
    with disks.small(tmp_path / "disk", megabytes=8) as disk:
        repository = Repository(Path(shutil.copytree(published, disk / "repository")))
        with disks.full(disk), pytest.raises(OSError, match="No space left"):
            make(repository, hopeful).write(image(VIOLETS[0]), "unknown", budget())
        assert not store(repository).listing().candidates
        assert make(repository).write(image(VIOLETS[0]), "unknown", budget()) == "kept"


def test_deleted_model_gets_no_directory(repository: Repository, writer: Writer) -> None:
    """A candidate of a model that was deleted meanwhile is dropped; those before go with it."""
    writer.write(image(VIOLETS[0]), "unknown", budget())
    repository.delete_model("colours")
    with pytest.raises(NotFound):
        writer.write(image(VIOLETS[1]), "unknown", budget())
    assert not (repository.root / "models" / "colours").exists()
    repository.undelete_model("colours", most=10)
    assert len(store(repository).listing().candidates) == 1


def test_retire_that_was_interrupted_can_be_repeated(
    repository: Repository, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a crash between both steps the candidate is listed, and is retired again."""
    writer.write(image(VIOLETS[0]), "unknown", budget())
    digest, candidates = only(repository), store(repository)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, candidates.writing():
        patch.setattr(Path, "unlink", die)
        with pytest.raises(KeyboardInterrupt):
            candidates.retire(digest)
    assert only(repository) == digest
    with candidates.writing():
        assert candidates.retire(digest)
    assert not candidates.listing().candidates


@pytest.fixture
def aged(repository: Repository, writer: Writer) -> Repository:
    """Return a repository with a new candidate, and one of two days ago."""
    repository.set_review_policy("colours", ReviewPolicy(keep_seconds=86400))
    writer.write(image(VIOLETS[0]), "unknown", budget())
    old = repository.root / store(repository).directory / f"{only(repository)}.npz"
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    writer.write(image(VIOLETS[1]), "unknown", budget())
    return repository


def test_gc_deletes_expired_candidates(aged: Repository) -> None:
    """Also while no server runs; a dry run lists them only."""
    listed = collect(aged, dry_run=True).removed
    assert [found.kind for found in listed] == ["candidate"]
    assert len(store(aged).listing().candidates) == 2
    assert collect(aged).removed == listed
    assert len(store(aged).listing().candidates) == 1
    assert collect(aged).removed == ()


def test_gc_erases_a_candidate(aged: Repository) -> None:
    """Its digest is that of the example, so that one command erases both."""
    erased = list_directory(aged.storage, store(aged).directory).candidates
    collect(aged, erase=[*erased])
    assert [*(aged.root / store(aged).directory).iterdir()] == []


def test_fsck_finds_damaged_candidates_and_policies(aged: Repository) -> None:
    """A changed image and an invalid policy are errors; lists leave the candidate out."""
    assert [each for each in check(aged) if each.severity == "error"] == []
    path = next((aged.root / store(aged).directory).glob("*.npz"))
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 1
    path.write_bytes(content)
    (aged.root / "models" / "colours" / "review.json").write_bytes(b"{")
    found = {each.path for each in check(aged) if each.severity == "error"}
    assert found == {f"models/colours/review/{path.name}", "models/colours/review.json"}
    with pytest.raises(Corrupt, match=r"was changed|cannot be used"):
        store(aged).image(path.stem)
