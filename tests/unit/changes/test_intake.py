"""Intake of changes: few database calls, and one operation for a call and its repetitions."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from support import statements

from topwork.bundle.manifest import Manifest
from topwork.bundle.store import Repository
from topwork.changes.database import database_url
from topwork.changes.intake import Intake, new_request_id
from topwork.changes.operations import Operations
from topwork.changes.quota import Quotas
from topwork.changes.requests import ChangeRequest, UploadedImage, UploadItem
from topwork.changes.rows import OperationState
from topwork.changes.uploads import Uploads
from topwork.errors import AlreadyExists, InvalidInput, NotFound, Overloaded, QuotaExceeded
from topwork.limits import ServerLimits

RETRAIN = ChangeRequest(kind="retrain", model="colours")
ADD = ChangeRequest(kind="add_class", model="colours", label="violet", path="config.")
IMAGES = [UploadedImage(name="a.jpg", content=b"photo"), UploadedImage(name="", content=b"x")]


class Models:
    """A model that serves, as a test wants it."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    def serving(self, model: str) -> Manifest:
        """Return it. Raises NotFound for another."""
        if model != self.manifest.model:
            raise NotFound(f"there is no model {model!r}", kind="model", resource=model)
        return self.manifest


class House:
    """Intake and all that it needs, without a worker."""

    def __init__(self, root: Path, limits: ServerLimits) -> None:
        self.repository = Repository(root)
        self.models = Models(self.repository.manifest("colours", 1))
        self.operations = Operations(database_url(root), self.repository, limits)
        self.intake = Intake(
            self.models,
            self.operations,
            Uploads(self.repository, limits),
            Quotas(self.repository, limits),
            limits,
        )
        self._runner = asyncio.Runner()
        self._runner.run(self.operations.start())

    def take(self, request: ChangeRequest) -> OperationState:
        """Ask for a change without images."""
        return self._runner.run(self.intake.take(request))

    def upload(
        self, request: ChangeRequest, images: list[UploadedImage] = IMAGES
    ) -> OperationState:
        """Ask for a change with images."""

        async def items() -> AsyncIterator[UploadItem]:
            yield request
            yield images

        return self._runner.run(self.intake.upload(items()))

    def cancel(self, operation: OperationState) -> None:
        """End an operation."""
        self._runner.run(self.operations.cancel(operation.id))

    def stored(self) -> int:
        """Return how many images are in the repository."""
        return len(self.repository.stored("images"))

    def close(self) -> None:
        """Disconnect."""
        self._runner.run(self.operations.aclose())
        self._runner.close()


@pytest.fixture
def root(colours: Repository) -> Path:
    """Return a repository's directory."""
    return colours.root


@pytest.fixture
def house(root: Path) -> Iterator[House]:
    """Yield a house in which a model may have two unfinished operations."""
    made = House(root, ServerLimits(max_pending_operations=2, min_free_bytes=0, min_free_inodes=0))
    yield made
    made.close()


def named(request: ChangeRequest) -> ChangeRequest:
    """Return a request that can be repeated."""
    return replace(request, request_id=str(uuid.uuid4()))


def kinds(noted: list[str]) -> list[str]:
    """Return the first word of each statement."""
    return [statement.split()[0] for statement in noted]


def test_change_takes_one_read_and_one_insertion(house: House) -> None:
    """The read tells how much is unfinished; DBOS inserts a row and the job into two tables."""
    with statements.noted() as noted:
        house.take(named(RETRAIN))
    assert kinds(noted) == ["SELECT", "INSERT", "INSERT"]


def test_upload_takes_three_reads_and_one_insertion(house: House) -> None:
    """Whether it is a repeated call and what is unfinished, and that again after its images."""
    with statements.noted() as noted:
        house.upload(named(ADD))
    assert kinds(noted) == ["SELECT", "SELECT", "SELECT", "INSERT", "INSERT"]


def test_repeated_upload_stores_nothing(house: House) -> None:
    """One read tells that it is known, whatever images follow."""
    request = named(ADD)
    first = house.upload(request)
    before = house.stored()
    with statements.noted() as noted:
        again = house.upload(request, [UploadedImage(name="b", content=b"another")])
    assert (again, house.stored()) == (first, before)
    assert kinds(noted) == ["SELECT"]


def test_accepted_operation_is_what_the_database_has(house: House) -> None:
    """It is told from the job, and a later look at the database tells the same."""
    request = named(ADD)
    assert house.upload(request) == house.upload(request)
    retrain = named(RETRAIN)
    assert house.take(retrain) == house.take(retrain)


def test_repeated_call_is_known_when_the_model_takes_no_more(house: House) -> None:
    """Where a new call is Overloaded, one that was accepted before is its operation."""
    request = named(RETRAIN)
    first = house.take(request)
    house.take(named(RETRAIN))
    with pytest.raises(Overloaded):
        house.take(named(RETRAIN))
    with pytest.raises(Overloaded):
        house.upload(named(ADD))
    assert house.take(request) == first
    assert house.stored() == 0


def test_repeated_call_is_known_when_it_was_done(house: House) -> None:
    """A label that it added is there by now, which forbids only other calls to add it."""
    request = named(ADD)
    first = house.upload(request)
    house.models.manifest = replace(house.models.manifest, labels=("blue", "violet"))
    with pytest.raises(AlreadyExists) as caught:
        house.upload(named(ADD))
    assert caught.value.reason == "LABEL_EXISTS"
    assert house.upload(request) == first


def test_repeated_call_is_known_when_its_operation_failed(house: House) -> None:
    """It is the finished operation, and nothing is tried again."""
    request = named(RETRAIN)
    house.cancel(house.take(request))
    again = house.take(request)
    assert again.outcome is not None


def test_request_id_of_another_change_is_refused(house: House) -> None:
    """It is AlreadyExists, whether the other call would be let in or not."""
    request = named(RETRAIN)
    house.take(request)
    other = replace(request, kind="remove_class", label="blue")
    for asked in (other, replace(other, label="unknown")):
        with pytest.raises(AlreadyExists) as caught:
            house.take(asked)
        assert caught.value.reason == "REQUEST_ID_REUSED"


def test_full_quota_refuses_all_changes_but_removals(root: Path) -> None:
    """Removing a label lets something go; the other kinds are QuotaExceeded and store nothing."""
    house = House(root, ServerLimits(max_model_bytes=1))
    try:
        rename = ChangeRequest(kind="rename_class", model="colours", label="blue", new_label="navy")
        for ask in (
            partial(house.take, RETRAIN),
            partial(house.upload, ADD),
            partial(house.take, rename),
        ):
            with pytest.raises(QuotaExceeded) as caught:
                ask()
            assert caught.value.reason == "MODEL_QUOTA"
        assert house.stored() == 0
        removal = ChangeRequest(kind="remove_class", model="colours", label="blue")
        assert house.take(removal).subject.kind == "remove_class"
    finally:
        house.close()


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (replace(ADD, label=""), "config.label"),
        (replace(ADD, label="a\tb"), "config.label"),
        (replace(ADD, request_id="1"), "config.request_id"),
    ],
)
def test_wrong_field_of_an_upload_is_named(house: House, wrong: ChangeRequest, field: str) -> None:
    """It is InvalidInput, with the path that the field has in its message."""
    with pytest.raises(InvalidInput) as caught:
        house.upload(wrong)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (replace(RETRAIN, head="forest"), "head"),
        (replace(RETRAIN, normalisation="l3"), "normalisation"),
        (replace(RETRAIN, kind="rename_class", label="blue", new_label="\n"), "new_label"),
        (replace(RETRAIN, kind="remove_class"), "label"),
    ],
)
def test_wrong_field_of_a_change_is_named(house: House, wrong: ChangeRequest, field: str) -> None:
    """It is InvalidInput."""
    with pytest.raises(InvalidInput) as caught:
        house.take(wrong)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "given",
    [
        *("1", "violet", "5c2e9d46-1d5c-4a7b-9a52", "../../etc", "5" * 10_000, "\0"),
        *("0x2e9d461d5c4a7b9a523f0a1b2c3d4e", "{5c2e9d46-1d5c-4a7b-9a52-3f0a1b2c3d4e}"),
        *("\u0665c2e9d46-1d5c-4a7b-9a52-3f0a1b2c3d4", "5c2e9d46-1d5c-4a7b-9a52-3f0a1b2c3d4e\n"),
    ],
)
def test_a_request_id_is_a_uuid(given: str) -> None:
    """An id that is no UUID is InvalidInput, and names the field."""
    with pytest.raises(InvalidInput, match="is no UUID") as caught:
        new_request_id(given, field="config.request_id")
    assert caught.value.field == "config.request_id"


def test_a_request_id_has_one_spelling() -> None:
    """The same UUID in capitals is the same id; without one each call has its own."""
    given = "5C2E9D46-1D5C-4A7B-9A52-3F0A1B2C3D4E"
    spelled = {new_request_id(one, field="request_id") for one in (given, given.lower())}
    assert spelled == {given.lower()}
    assert new_request_id("", field="request_id") != new_request_id("", field="request_id")
