"""One server for most tests; each test that changes a model has its own model."""

from __future__ import annotations

import itertools
import socket
import sys
from collections.abc import Callable, Iterator, Sequence

import grpc
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from support import object_stores, servers, tiny
from support.object_stores import S3Server
from support.pictures import pictures
from support.servers import AddClass, Command, Running

from topwork import CallFailed, Client
from topwork.bundle.exemplars import Exemplars
from topwork.bundle.store import Repository
from topwork.cli import main
from topwork.v1 import model_service_pb2_grpc as model_grpc

LIMITS = {
    "max_images_per_request": 16,
    "max_image_bytes": 2**20,
    "max_message_bytes": 4 * 2**20,
    "max_images_per_upload": 400,
    "max_labels": 7,
}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Yield a server with a worker; no test changes its model ``colours``."""
    repository = tiny.repository(tmp_path_factory.mktemp("server") / "repository")
    with servers.running(
        repository.root, limits=LIMITS, http_port="127.0.0.1:0", forked=False
    ) as started:
        yield started


@pytest.fixture(scope="session")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Yield a server without a worker, so that operations never start, with a short queue."""
    repository = tiny.repository(tmp_path_factory.mktemp("idle") / "repository")
    with servers.running(repository.root, worker=False, queue_limit=8) as started:
        yield started


@pytest.fixture(scope="session")
def client(server: Running) -> Iterator[Client]:
    """Yield a client of the server."""
    with Client(server.address) as made:
        yield made


@pytest.fixture(scope="session")
def channel(server: Running) -> Iterator[grpc.Channel]:
    """Yield a bare gRPC channel to the server, for requests that Client would not send."""
    with grpc.insecure_channel(
        server.address, options=[("grpc.max_send_message_length", -1)]
    ) as made:
        yield made


@pytest.fixture(scope="session")
def models(channel: grpc.Channel) -> model_grpc.ModelServiceStub:
    """Return a bare stub of ModelService."""
    return model_grpc.ModelServiceStub(channel)


@pytest.fixture(scope="session")
def operations(channel: grpc.Channel) -> operations_pb2_grpc.OperationsStub:
    """Return a bare stub of the Operations service."""
    return operations_pb2_grpc.OperationsStub(channel)


@pytest.fixture(scope="session")
def four_colours() -> Exemplars:
    """Return the exemplars of four labels, 20 pictures each."""
    labels = ("amber", "blue", "crimson", "green")
    return tiny.embed_pictures({label: pictures(label, 20) for label in labels})


@pytest.fixture(scope="session")
def serve(server: Running, client: Client) -> Callable[[Exemplars], str]:
    """Return a function that publishes a new model and returns its name once it is served."""
    numbers = itertools.count(1)

    def publish(exemplars: Exemplars) -> str:
        model = f"model-{next(numbers)}"
        tiny.publish(Repository(server.repository), model, exemplars)

        def served() -> bool:
            try:
                return bool(client.model(model).name)
            except CallFailed:
                return False

        servers.eventually(served)
        return model

    return publish


@pytest.fixture
def model(serve: Callable[[Exemplars], str], four_colours: Exemplars) -> str:
    """Return the name of a new model with four labels."""
    return serve(four_colours)


@pytest.fixture(scope="session")
def add_class(client: Client) -> AddClass:
    """Return a function that adds a class and returns the finished operation."""

    def run(
        model: str, label: str, images: Sequence[tuple[str, bytes]], *, request_id: str = ""
    ) -> operations_pb2.Operation:
        accepted = client.add_class(model, label, images, request_id=request_id)
        *_, finished = client.watch(accepted.name)
        return finished

    return run


@pytest.fixture
def unused_address() -> Iterator[str]:
    """Yield an address that no server listens on or can bind."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def topwork(
    server: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Return a function that runs ``topwork`` and returns exit status, output and errors."""

    def run(*arguments: object, address: str = server.address) -> tuple[int, str, str]:
        name, *others = map(str, arguments)
        monkeypatch.setattr(sys, "argv", ["topwork", *name.split(), "--address", address, *others])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[S3Server]:
    """Yield a running SeaweedFS."""
    with object_stores.seaweedfs() as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """Yield a running moto."""
    with object_stores.moto() as server:
        yield server
