"""Disk quota of a model: the bytes in use, and the limits of bytes and inodes."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from support import stored
from support.stored import image, publish, put_shard

from topwork.bundle.draft import Draft
from topwork.bundle.manifest import ShardRef
from topwork.bundle.recipe import Recipe
from topwork.bundle.store import Repository
from topwork.changes.quota import Quotas
from topwork.errors import NotFound, QuotaExceeded, Unavailable
from topwork.limits import DEFAULT_LIMITS
from topwork.storage import files


class Disk(NamedTuple):
    """The fields of ``os.statvfs``'s result that a quota reads."""

    f_bavail: int = 10**6
    f_frsize: int = 10
    f_files: int = 10**6
    f_favail: int = 10**6


def size_of(repository: Repository, model: str, shards: set[str], images: set[int]) -> int:
    """Return the bytes of a model's revisions, shards and images."""
    revisions = (repository.root / "models" / model).glob("[0-9]*")
    return (
        sum(map(files.size, revisions))
        + sum(files.size(repository.root / repository.key("exemplars", shard)) for shard in shards)
        + sum(len(image(number)) for number in images)
    )


def test_model_uses_the_bytes_of_revisions_shards_and_images(tmp_path: Path) -> None:
    """A shard counts once for each model that refers to it, with its images."""
    made = Repository(tmp_path)
    quotas = Quotas(made, DEFAULT_LIMITS)
    first, second = put_shard(made, 1, 2), put_shard(made, 3)
    put_shard(made, 9)  # an unreferenced shard
    publish(made, [first])
    publish(made, [first, second])
    assert quotas.of("m").used == size_of(made, "m", {first, second}, {1, 2, 3})
    publish(made, [second], model="other")
    assert quotas.of("other").used == size_of(made, "other", {second}, {3})
    publish(made, [put_shard(made, 4, put=False)])
    assert quotas.of("m", pending=7).used == 7 + size_of(
        made, "m", {first, second, put_shard(made, 4, put=False)}, {1, 2, 3}
    )


def test_draft_uses_the_bytes_of_its_shards(tmp_path: Path) -> None:
    """Until the model serves, the shards of its draft count, with their images."""
    made = Repository(tmp_path)
    shard, backbone = put_shard(made, 1, 2), stored.put_backbone(made)
    draft = Draft(
        model="m",
        backbone=backbone,
        backbone_info=made.backbone_info_digest(backbone),
        seed=0,
        recipe=Recipe(),
        created=datetime.now(UTC),
        exemplars=(ShardRef(label="a", digest=shard),),
        images=2,
    )
    made.new_model(draft, most=1)
    quotas = Quotas(made, DEFAULT_LIMITS)
    assert quotas.of("m").used == size_of(made, "m", {shard}, {1, 2})
    manifest = publish(made, [put_shard(made, 3)])
    made.set_serving("m", manifest.revision, why="fit")
    assert quotas.of("m").used == size_of(made, "m", {put_shard(made, 3)}, {3})


def test_deleted_revision_frees_its_bytes(tmp_path: Path) -> None:
    """It also frees the shards that only this revision referred to."""
    made = stored.repository(tmp_path)
    quotas = Quotas(made, DEFAULT_LIMITS)
    before = quotas.of("m").used
    shutil.rmtree(tmp_path / "models" / "m" / "1")
    after = quotas.of("m").used
    assert after == Quotas(made, DEFAULT_LIMITS).of("m").used
    assert after < before


def test_damaged_revision_counts_for_its_own_files(tmp_path: Path) -> None:
    """An unreadable manifest or a missing shard raises no error."""
    made = stored.repository(tmp_path)
    (tmp_path / "models" / "m" / "2" / "manifest.json").write_bytes(b"{")
    for path in (tmp_path / "exemplars").iterdir():
        path.unlink()
    revisions = (tmp_path / "models" / "m").glob("[0-9]*")
    assert Quotas(made, DEFAULT_LIMITS).of("m").used == sum(map(files.size, revisions))


def test_reused_revision_number_is_counted_again(tmp_path: Path) -> None:
    """The cached size of a deleted model is not that of its successor of the same name."""
    made = stored.repository(tmp_path)
    quotas = Quotas(made, DEFAULT_LIMITS)
    assert quotas.of("m").used > 0
    shutil.rmtree(tmp_path / "models" / "m")
    publish(made, [put_shard(made, 5, 6, 7)])
    assert quotas.of("m").used == Quotas(made, DEFAULT_LIMITS).of("m").used


def test_unreadable_disk_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the reason STORAGE and no path."""
    made = stored.repository(tmp_path)
    quota = Quotas(made, DEFAULT_LIMITS).of("m")

    def fail(_: object) -> None:
        raise OSError(116, "Stale file handle", str(tmp_path))

    monkeypatch.setattr(os, "statvfs", fail)
    monkeypatch.setattr(made, "revisions", fail)
    for call in (lambda: quota.check(1, 1, 1), lambda: Quotas(made, DEFAULT_LIMITS).of("m")):
        with pytest.raises(Unavailable, match=r"now: Stale file handle$") as caught:
            call()
        assert caught.value.reason == "STORAGE"


def test_unknown_model_is_not_found(tmp_path: Path) -> None:
    """The error names the model."""
    with pytest.raises(NotFound, match="models/nothing"):
        Quotas(stored.repository(tmp_path), DEFAULT_LIMITS).of("nothing")


def test_check_raises_one_byte_above_the_quota(tmp_path: Path) -> None:
    """The QuotaExceeded has the numbers."""
    made = stored.repository(tmp_path)
    used = Quotas(made, DEFAULT_LIMITS).of("m").used
    limits = replace(DEFAULT_LIMITS, max_model_bytes=used + 10, min_free_bytes=0)
    quota = Quotas(made, limits).of("m")
    quota.check(10, 10, 1)
    with pytest.raises(QuotaExceeded, match=rf"uses {used} bytes, and 11 more") as caught:
        quota.check(11, 1, 1)
    assert (caught.value.subject, caught.value.reason) == ("models/m", "MODEL_QUOTA")


def test_check_keeps_the_minimum_of_free_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload that would leave fewer free bytes is refused as DISK_FULL."""
    quota = Quotas(stored.repository(tmp_path), replace(DEFAULT_LIMITS, min_free_bytes=100)).of("m")
    monkeypatch.setattr(os, "statvfs", lambda _: Disk(f_bavail=13))
    quota.check(5000, 30, 1)
    with pytest.raises(QuotaExceeded, match="130 bytes free, of which 100 must remain") as caught:
        quota.check(5000, 31, 1)
    assert (caught.value.subject, caught.value.reason) == ("repository", "DISK_FULL")


def test_check_keeps_the_minimum_of_free_inodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image takes an inode; an upload that would leave fewer is refused as DISK_FULL."""
    limits = replace(DEFAULT_LIMITS, min_free_bytes=0, min_free_inodes=100)
    quota = Quotas(stored.repository(tmp_path), limits).of("m")
    monkeypatch.setattr(os, "statvfs", lambda _: Disk(f_favail=130))
    quota.check(5000, 5000, 30)
    with pytest.raises(QuotaExceeded, match="130 inodes free, of which 100 must remain") as caught:
        quota.check(5000, 5000, 31)
    assert (caught.value.subject, caught.value.reason) == ("repository", "DISK_FULL")


def test_check_ignores_inodes_if_their_total_is_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File systems such as Btrfs report 0 inodes in total, because they have no limit."""
    quota = Quotas(stored.repository(tmp_path), DEFAULT_LIMITS).of("m")
    monkeypatch.setattr(os, "statvfs", lambda _: Disk(f_bavail=10**9, f_files=0, f_favail=0))
    quota.check(5000, 5000, 31)
