"""What a client may take of a server: each limit over the wire, with the error that it gives."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support import servers, tiny
from support.pictures import picture, pictures
from support.servers import Running, failure

from topwork import CallFailed, Client
from topwork.bundle.store import Repository
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import classifier_service_pb2_grpc as classify_grpc

VIOLETS = [(f"violet-{n}.png", content) for n, content in enumerate(pictures("violet", 6))]
LIMITS = {
    "max_message_bytes": 2**20,
    "max_model_bytes": 10**6,
    "max_pending_operations": 2,
    "max_streams": 0,
}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Yield a server with narrow limits, whose operations wait for ever."""
    root = tmp_path_factory.mktemp("narrow") / "repository"
    repository = tiny.repository(root)
    tiny.publish_copy(repository, repository.manifest("colours", 1), model="full")
    repository.set_serving("full", 1, why="fit")
    (root / "models" / "full" / "1" / "ballast").write_bytes(bytes(10**6))
    with servers.running(root, worker=False, limits=LIMITS, health_port="127.0.0.1:0") as started:
        yield started


@pytest.fixture(scope="module")
def client(narrow: Running) -> Iterator[Client]:
    """Yield its client."""
    with Client(narrow.address) as made:
        yield made


def quotas(error: CallFailed) -> list[str]:
    """Return the subjects of an error's QuotaFailure."""
    found = error_details_pb2.QuotaFailure()
    details = [detail for detail in error.status.details if detail.Unpack(found)]
    return [one.subject for one in found.violations] if details else []


def test_a_model_that_has_used_up_its_quota(client: Client, narrow: Running) -> None:
    """Changes that take room are RESOURCE_EXHAUSTED and store nothing; RemoveClass goes on."""
    before = len(Repository(narrow.repository).stored("images"))
    calls = (
        lambda: client.add_class("full", "violet", VIOLETS),
        lambda: client.add_examples("full", "blue", VIOLETS),
        lambda: client.rename_class("full", "blue", "navy"),
        lambda: client.retrain("full"),
    )
    for call in calls:
        error = failure(call)
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "MODEL_QUOTA")
        assert quotas(error) == ["models/full"]
        assert error.retry_after == 0.0
        assert "would exceed its quota of 1000000" in str(error)
    assert len(Repository(narrow.repository).stored("images")) == before
    assert client.remove_class("full", "blue").name


def test_a_model_with_too_many_unfinished_operations(client: Client) -> None:
    """The next one is RESOURCE_EXHAUSTED with RetryInfo; a repeated call is still its operation."""
    request_id = str(uuid.uuid4())
    first = client.add_class("colours", "violet", VIOLETS, request_id=request_id)
    client.retrain("colours")
    for error in (
        failure(lambda: client.add_class("colours", "indigo", VIOLETS)),
        failure(lambda: client.remove_class("colours", "blue")),
    ):
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_OPERATIONS")
        assert error.retry_after == 5.0
    again = client.add_class("colours", "violet", VIOLETS, request_id=request_id)
    assert again.name == first.name
    client.cancel(first.name)
    assert client.add_class("colours", "indigo", VIOLETS).name


def test_a_stream_too_many(client: Client) -> None:
    """A StreamClassify call beyond the limit is RESOURCE_EXHAUSTED with RetryInfo."""
    error = failure(lambda: list(client.classify_stream("colours", [picture("blue", 1)])))
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS")
    assert error.retry_after == 1.0


def test_a_message_that_is_too_long(narrow: Running) -> None:
    """It is RESOURCE_EXHAUSTED, and the error has the limit."""
    request = classify_pb.ClassifyRequest(model="models/colours", images=[bytes(8 * 2**20)])
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(narrow.address, options) as channel:
        stub = classify_grpc.ClassifierServiceStub(channel)
        error = failure(lambda: stub.Classify(request))
    assert error.code == "RESOURCE_EXHAUSTED"
    assert "1048576" in str(error)


def test_the_health_port_takes_short_messages_only(narrow: Running) -> None:
    """Who reaches that port is not known, and what health is asked has the length of a name."""
    port = narrow.fact("health port")["port"]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        assert check(health_pb2.HealthCheckRequest()).status
        error = failure(lambda: check(health_pb2.HealthCheckRequest(service="x" * 5000)))
    assert error.code == "RESOURCE_EXHAUSTED"


def test_images_are_counted_before_they_are_looked_at(narrow: Running) -> None:
    """A short message of very many empty images is refused by their number."""
    request = classify_pb.ClassifyRequest(model="models/colours", images=[b""] * 400_000)
    with grpc.insecure_channel(narrow.address) as channel:
        error = failure(lambda: classify_grpc.ClassifierServiceStub(channel).Classify(request))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "TOO_MANY_IMAGES")
    assert "400000 images; the limit is 256" in str(error)
