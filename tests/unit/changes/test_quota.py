"""The bytes that a model takes on the disk are counted, and bounded."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from support import stored
from support.stored import image, publish, put_shard

from topwork.bundle import files
from topwork.bundle.store import Repository
from topwork.changes.quota import Quotas
from topwork.errors import NotFound, QuotaExceeded, Unavailable
from topwork.limits import DEFAULT_LIMITS


class Disk(NamedTuple):
    """A part of what ``os.statvfs`` returns."""

    f_bavail: int = 10**6
    f_frsize: int = 10
    f_files: int = 10**6
    f_favail: int = 10**6


def size_of(repository: Repository, model: str, shards: set[str], images: set[int]) -> int:
    """Return the bytes of a model's revisions, and of what they refer to."""
    revisions = (repository.root / "models" / model).glob("[0-9]*")
    return (
        sum(map(files.size, revisions))
        + sum(files.size(repository.path("exemplars", one)) for one in shards)
        + sum(len(image(one)) for one in images)
    )


def test_a_model_takes_its_revisions_shards_and_images(tmp_path: Path) -> None:
    """A shard counts once a model with its images; what others refer to counts for them."""
    made = Repository(tmp_path)
    quotas = Quotas(made, DEFAULT_LIMITS)
    one, two = put_shard(made, 1, 2), put_shard(made, 3)
    put_shard(made, 9)  # which nobody refers to
    publish(made, [one])
    publish(made, [one, two])
    assert quotas.of("m").used == size_of(made, "m", {one, two}, {1, 2, 3})
    publish(made, [two], model="other")
    assert quotas.of("other").used == size_of(made, "other", {two}, {3})
    publish(made, [put_shard(made, 4, put=False)])
    assert quotas.of("m", pending=7).used == 7 + size_of(
        made, "m", {one, two, put_shard(made, 4, put=False)}, {1, 2, 3}
    )


def test_what_was_deleted_counts_no_more(tmp_path: Path) -> None:
    """A revision that is gone takes nothing, nor do the shards that it alone referred to."""
    made = stored.repository(tmp_path)
    quotas = Quotas(made, DEFAULT_LIMITS)
    before = quotas.of("m").used
    shutil.rmtree(tmp_path / "models" / "m" / "1")
    after = quotas.of("m").used
    assert after == Quotas(made, DEFAULT_LIMITS).of("m").used
    assert after < before


def test_a_damaged_revision_counts_for_its_files(tmp_path: Path) -> None:
    """What cannot be read is no reason to refuse a change, nor is a shard that is missing."""
    made = stored.repository(tmp_path)
    (tmp_path / "models" / "m" / "2" / "manifest.json").write_bytes(b"{")
    for path in (tmp_path / "exemplars").iterdir():
        path.unlink()
    revisions = (tmp_path / "models" / "m").glob("[0-9]*")
    assert Quotas(made, DEFAULT_LIMITS).of("m").used == sum(map(files.size, revisions))


def test_a_number_that_is_anothers_is_counted_anew(tmp_path: Path) -> None:
    """A model that was deleted and fitted again takes what it takes now."""
    made = stored.repository(tmp_path)
    quotas = Quotas(made, DEFAULT_LIMITS)
    assert quotas.of("m").used > 0
    shutil.rmtree(tmp_path / "models" / "m")
    publish(made, [put_shard(made, 5, 6, 7)])
    assert quotas.of("m").used == Quotas(made, DEFAULT_LIMITS).of("m").used


def test_a_disk_that_cannot_be_read_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is away for a moment: no reason to call it a bug, or to tell its path."""
    made = stored.repository(tmp_path)
    quota = Quotas(made, DEFAULT_LIMITS).of("m")

    def away(_: object) -> None:
        raise OSError(116, "Stale file handle", str(tmp_path))

    monkeypatch.setattr(os, "statvfs", away)
    monkeypatch.setattr(made, "revisions", away)
    for call in (lambda: quota.check(1, 1, 1), lambda: Quotas(made, DEFAULT_LIMITS).of("m")):
        with pytest.raises(Unavailable, match=r"now: Stale file handle$") as caught:
            call()
        assert caught.value.reason == "STORAGE"


def test_an_unknown_model_has_no_room(tmp_path: Path) -> None:
    """It is NotFound."""
    with pytest.raises(NotFound, match="models/nothing"):
        Quotas(stored.repository(tmp_path), DEFAULT_LIMITS).of("nothing")


def test_a_quota_is_all_that_a_model_may_take(tmp_path: Path) -> None:
    """Up to the quota there is room, one byte beyond it is QuotaExceeded, with the numbers."""
    made = stored.repository(tmp_path)
    used = Quotas(made, DEFAULT_LIMITS).of("m").used
    limits = replace(DEFAULT_LIMITS, max_model_bytes=used + 10, min_free_bytes=0)
    quota = Quotas(made, limits).of("m")
    quota.check(10, 10, 1)
    with pytest.raises(QuotaExceeded, match=rf"takes {used} bytes, and 11 more") as caught:
        quota.check(11, 1, 1)
    assert (caught.value.subject, caught.value.reason) == ("models/m", "MODEL_QUOTA")


def test_a_disk_is_never_filled_by_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would leave less than the least is refused, whoever filled the disk."""
    quota = Quotas(stored.repository(tmp_path), replace(DEFAULT_LIMITS, min_free_bytes=100)).of("m")
    monkeypatch.setattr(os, "statvfs", lambda _: Disk(f_bavail=13))
    quota.check(5000, 30, 1)
    with pytest.raises(QuotaExceeded, match="130 bytes free, of which 100 must remain") as caught:
        quota.check(5000, 31, 1)
    assert (caught.value.subject, caught.value.reason) == ("repository", "DISK_FULL")


def test_inodes_are_never_used_up_by_uploads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image takes a file; what would leave fewer than the least is refused and says so."""
    limits = replace(DEFAULT_LIMITS, min_free_bytes=0, min_free_inodes=100)
    quota = Quotas(stored.repository(tmp_path), limits).of("m")
    monkeypatch.setattr(os, "statvfs", lambda _: Disk(f_favail=130))
    quota.check(5000, 5000, 30)
    with pytest.raises(QuotaExceeded, match=r"130 inodes .* free, of which 100 must") as caught:
        quota.check(5000, 5000, 31)
    assert (caught.value.subject, caught.value.reason) == ("repository", "DISK_FULL")


def test_a_file_system_without_inodes_has_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Btrfs says that it has 0 inodes in all: nothing is refused for want of them."""
    quota = Quotas(stored.repository(tmp_path), DEFAULT_LIMITS).of("m")
    monkeypatch.setattr(os, "statvfs", lambda _: Disk(f_bavail=10**9, f_files=0, f_favail=0))
    quota.check(5000, 5000, 31)
