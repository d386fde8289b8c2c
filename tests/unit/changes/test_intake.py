"""Intake of changes: few database queries, and idempotency of repeated calls."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from support import statements

from topwork.bundle.examples import ExampleIndex
from topwork.bundle.manifest import Manifest
from topwork.bundle.store import Repository
from topwork.changes.database import database_url
from topwork.changes.intake import Intake, normalise_request_id
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
    """A registry of one model, whose manifest a test can replace."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    def current(self, model: str) -> Manifest:
        """Return the manifest. Raises NotFound for another model."""
        if model != self.manifest.model:
            raise NotFound(f"there is no model {model!r}", kind="model", resource=model)
        return self.manifest


class Server:
    """An intake and its dependencies, without a worker."""

    def __init__(self, root: Path, limits: ServerLimits) -> None:
        self.repository = Repository(root)
        self.models = Models(self.repository.manifest("colours", 1))
        self.operations = Operations(database_url(root), self.repository, limits)
        self.intake = Intake(
            self.models,
            self,
            self.operations,
            Uploads(self.repository, limits),
            Quotas(self.repository, limits),
            limits,
        )
        self._runner = asyncio.Runner()
        self._runner.run(self.operations.start())

    async def index(self, manifest: Manifest) -> ExampleIndex:
        """Return the index of a revision's examples."""
        return self.repository.examples(manifest)

    def submit(self, request: ChangeRequest) -> OperationState:
        """Request a change without images."""
        return self._runner.run(self.intake.submit(request))

    def upload(
        self, request: ChangeRequest, images: list[UploadedImage] = IMAGES
    ) -> OperationState:
        """Request a change with images."""

        async def items() -> AsyncIterator[UploadItem]:
            yield request
            yield images

        return self._runner.run(self.intake.upload(items()))

    def cancel(self, operation: OperationState) -> None:
        """Cancel an operation."""
        self._runner.run(self.operations.cancel(operation.id))

    def stored(self) -> int:
        """Return the number of images in the repository."""
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
def server(root: Path) -> Iterator[Server]:
    """Yield a server with a limit of two unfinished operations per model."""
    made = Server(root, ServerLimits(max_pending_operations=2, min_free_bytes=0, min_free_inodes=0))
    yield made
    made.close()


def with_id(request: ChangeRequest) -> ChangeRequest:
    """Return the request with a new idempotency key."""
    return replace(request, request_id=str(uuid.uuid4()))


def verbs(noted: list[str]) -> list[str]:
    """Return the first word of each statement."""
    return [statement.split()[0] for statement in noted]


@pytest.mark.slow
def test_submit_reads_once_and_inserts_once(server: Server) -> None:
    """It reads the unfinished operations; DBOS inserts the row and the job into two tables."""
    with statements.noted() as noted:
        server.submit(with_id(RETRAIN))
    assert verbs(noted) == ["SELECT", "INSERT", "INSERT"]


def test_upload_reads_three_times_and_inserts_once(server: Server) -> None:
    """It reads a repeated call and the unfinished operations, and these again after the images."""
    with statements.noted() as noted:
        server.upload(with_id(ADD))
    assert verbs(noted) == ["SELECT", "SELECT", "SELECT", "INSERT", "INSERT"]


def test_repeated_upload_stores_nothing(server: Server) -> None:
    """It reads the operation once, and none of the images that follow."""
    request = with_id(ADD)
    first = server.upload(request)
    before = server.stored()
    with statements.noted() as noted:
        again = server.upload(request, [UploadedImage(name="b", content=b"another")])
    assert (again, server.stored()) == (first, before)
    assert verbs(noted) == ["SELECT"]


def test_accepted_operation_equals_the_stored_one(server: Server) -> None:
    """The operation made from the job equals that read from the database by a repeated call."""
    request = with_id(ADD)
    assert server.upload(request) == server.upload(request)
    retrain = with_id(RETRAIN)
    assert server.submit(retrain) == server.submit(retrain)


def test_repeated_call_returns_its_operation_at_the_limit(server: Server) -> None:
    """A new call is Overloaded; a repeated call returns its operation."""
    request = with_id(RETRAIN)
    first = server.submit(request)
    server.submit(with_id(RETRAIN))
    with pytest.raises(Overloaded):
        server.submit(with_id(RETRAIN))
    with pytest.raises(Overloaded):
        server.upload(with_id(ADD))
    assert server.submit(request) == first
    assert server.stored() == 0


def test_repeated_call_returns_its_operation_after_success(server: Server) -> None:
    """Another call that adds the same label is AlreadyExists."""
    request = with_id(ADD)
    first = server.upload(request)
    server.models.manifest = replace(server.models.manifest, labels=("blue", "violet"))
    with pytest.raises(AlreadyExists) as caught:
        server.upload(with_id(ADD))
    assert caught.value.reason == "LABEL_EXISTS"
    assert server.upload(request) == first


def test_repeated_call_returns_its_operation_after_a_failure(server: Server) -> None:
    """The finished operation is returned, and the change is not retried."""
    request = with_id(RETRAIN)
    server.cancel(server.submit(request))
    again = server.submit(request)
    assert again.outcome is not None


def test_request_id_of_another_change_is_refused(server: Server) -> None:
    """It is AlreadyExists, even if the other change would also fail a check."""
    request = with_id(RETRAIN)
    server.submit(request)
    other = replace(request, kind="remove_class", label="blue")
    for request in (other, replace(other, label="unknown")):
        with pytest.raises(AlreadyExists) as caught:
            server.submit(request)
        assert caught.value.reason == "REQUEST_ID_REUSED"


def test_exceeded_quota_refuses_all_changes_except_removals(root: Path) -> None:
    """Other kinds are QuotaExceeded and store nothing; RemoveClass frees disk space."""
    server = Server(root, ServerLimits(max_model_bytes=1))
    try:
        rename = ChangeRequest(kind="rename_class", model="colours", label="blue", new_label="navy")
        for call in (
            partial(server.submit, RETRAIN),
            partial(server.upload, ADD),
            partial(server.submit, rename),
        ):
            with pytest.raises(QuotaExceeded) as caught:
                call()
            assert caught.value.reason == "MODEL_QUOTA"
        assert server.stored() == 0
        removal = ChangeRequest(kind="remove_class", model="colours", label="blue")
        assert server.submit(removal).subject.kind == "remove_class"
    finally:
        server.close()


@pytest.mark.parametrize(
    ("invalid", "field"),
    [
        (replace(ADD, label=""), "config.label"),
        (replace(ADD, label="a\tb"), "config.label"),
        (replace(ADD, request_id="1"), "config.request_id"),
        (replace(ADD, kind="add_classes", labels=()), "config.labels"),
        (replace(ADD, kind="add_classes", labels=("blue", "a\tb")), "config.labels[1]"),
        (replace(ADD, kind="add_classes", labels=("e\u0301", "\u00e9")), "config.labels[1]"),
    ],
)
def test_upload_names_an_invalid_field(server: Server, invalid: ChangeRequest, field: str) -> None:
    """The InvalidInput has the path of the field in the message."""
    with pytest.raises(InvalidInput) as caught:
        server.upload(invalid)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("invalid", "field"),
    [
        (replace(RETRAIN, head="forest"), "head"),
        (replace(RETRAIN, normalisation="l3"), "normalisation"),
        (replace(RETRAIN, kind="rename_class", label="blue", new_label="\n"), "new_label"),
        (replace(RETRAIN, kind="remove_class"), "label"),
        (replace(RETRAIN, kind="remove_examples"), "digests"),
        (replace(RETRAIN, kind="remove_examples", digests=("0" * 64, "0" * 63)), "digests[1]"),
        (replace(RETRAIN, kind="move_examples", digests=("0" * 64,)), "label"),
        (replace(RETRAIN, kind="move_examples", digests=("0" * 64,), label="\n"), "label"),
    ],
)
def test_submit_names_an_invalid_field(server: Server, invalid: ChangeRequest, field: str) -> None:
    """The InvalidInput has the name of the field."""
    with pytest.raises(InvalidInput) as caught:
        server.submit(invalid)
    assert caught.value.field == field


def test_unknown_examples_are_refused_before_they_are_queued(server: Server) -> None:
    """The NotFound names the example; the same with digests of another model."""
    request = ChangeRequest(kind="remove_examples", model="colours", digests=("0" * 64,))
    with pytest.raises(NotFound, match=f"'colours' has no example {'0' * 64}"):
        server.submit(request)


def test_request_id_of_other_examples_is_refused(server: Server) -> None:
    """A repeated call with other digests is not the same request; their order does not matter."""
    index = server.repository.examples(server.models.manifest)
    first, second, third = (row.tobytes().hex() for row in index.digests[:3])
    request = ChangeRequest(
        kind="remove_examples",
        model="colours",
        request_id=str(uuid.uuid4()),
        digests=(first, second),
    )
    accepted = server.submit(request)
    assert server.submit(replace(request, digests=(second.upper(), first, first))) == accepted
    with pytest.raises(AlreadyExists, match="was used for remove_examples of the examples"):
        server.submit(replace(request, digests=(first, third)))


def test_removal_of_examples_is_accepted_above_the_quota(root: Path) -> None:
    """It frees space; a move does not."""
    limits = ServerLimits(max_model_bytes=1, min_free_bytes=0, min_free_inodes=0)
    server = Server(root, limits)
    try:
        index = server.repository.examples(server.models.manifest)
        digests = (index.digests[0].tobytes().hex(),)
        request = ChangeRequest(kind="remove_examples", model="colours", digests=digests)
        assert server.submit(request).subject.kind == "remove_examples"
        label = next(label for label in index.labels if label != index.labels[index.targets[0]])
        with pytest.raises(QuotaExceeded):
            server.submit(replace(request, kind="move_examples", label=label))
    finally:
        server.close()


@pytest.mark.parametrize(
    "request_id",
    [
        *("1", "violet", "5c2e9d46-1d5c-4a7b-9a52", "../../etc", "5" * 10_000, "\0"),
        *("0x2e9d461d5c4a7b9a523f0a1b2c3d4e", "{5c2e9d46-1d5c-4a7b-9a52-3f0a1b2c3d4e}"),
        *("\u0665c2e9d46-1d5c-4a7b-9a52-3f0a1b2c3d4", "5c2e9d46-1d5c-4a7b-9a52-3f0a1b2c3d4e\n"),
    ],
)
def test_request_id_must_be_a_uuid(request_id: str) -> None:
    """Any other text is InvalidInput with the name of the field."""
    with pytest.raises(InvalidInput, match="is not a UUID") as caught:
        normalise_request_id(request_id, field="config.request_id")
    assert caught.value.field == "config.request_id"


def test_request_id_is_case_insensitive() -> None:
    """The same UUID in capitals is the same id; an empty id becomes a new one for each call."""
    upper = "5C2E9D46-1D5C-4A7B-9A52-3F0A1B2C3D4E"
    assert normalise_request_id(upper, field="request_id") == upper.lower()
    assert normalise_request_id(upper.lower(), field="request_id") == upper.lower()
    new = {normalise_request_id("", field="request_id") for _ in range(2)}
    assert len(new) == 2
