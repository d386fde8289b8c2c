"""Database of operations of a repository in a directory, or in a bucket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from topwork.changes import worker
from topwork.changes.database import (
    damage,
    database_url,
    note_database,
    noted_database,
    own_database,
    prepare,
)
from topwork.cli.maintain import _databases
from topwork.config import ServeConfig, WorkerConfig
from topwork.errors import InvalidInput
from topwork.rpc.server import Server
from topwork.storage.opening import open_storage
from topwork.storage.storage import Storage

POSTGRES = "postgresql://me:secret@host/topwork"


@pytest.fixture(params=["directory", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Return an empty storage."""
    if request.param == "bucket":
        pytest.importorskip("obstore", reason="a bucket needs the extra s3")
        return open_storage(f"memory://{tmp_path.name}")
    return open_storage(tmp_path)


def test_note_database_records_the_kind_of_another_database(storage: Storage) -> None:
    """The record has no password, and the first one stays."""
    assert noted_database(storage) == ""
    note_database(storage, POSTGRES)
    note_database(storage, "mysql://host")
    assert noted_database(storage) == "postgresql"
    assert storage.read("operations.database") == b"postgresql\n"


def test_directory_has_a_database_of_its_own(tmp_path: Path) -> None:
    """It is not noted as another one."""
    storage = open_storage(tmp_path)
    url = database_url(tmp_path)
    note_database(storage, url)
    assert noted_database(storage) == own_database(storage) == ""
    prepare(url)
    assert own_database(storage) == url
    assert damage(storage) == ""
    (tmp_path / "operations.sqlite").write_bytes(b"")
    assert "is empty" in damage(storage)


def test_bucket_has_no_database_of_its_own(tmp_path: Path) -> None:
    """Nothing is damaged, and another one is needed."""
    pytest.importorskip("obstore", reason="a bucket needs the extra s3")
    storage = open_storage(f"memory://{tmp_path.name}")
    assert own_database(storage) == damage(storage) == ""
    assert _databases(storage, POSTGRES) == {POSTGRES}
    with pytest.raises(InvalidInput, match="--database postgresql://") as error:
        _databases(storage, "")
    assert error.value.field == "database"


@pytest.mark.parametrize(
    "start",
    [
        lambda: Server(ServeConfig(repository="s3://bucket/prefix")),
        lambda: worker.run_alone(WorkerConfig(repository="s3://bucket/prefix")),
        lambda: worker.work(WorkerConfig(repository="s3://bucket/prefix"), lambda _working: None),
    ],
    ids=["serve", "worker", "worker of a server"],
)
def test_bucket_without_a_database_is_refused(
    start: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence says which database to give; no bucket is opened."""
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("topwork.runtime.process.set_priority", lambda _priority: None)
    with pytest.raises(InvalidInput, match="--database sqlite:////path") as error:
        start()
    assert error.value.field == "database"
