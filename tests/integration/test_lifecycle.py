"""Start, shutdown and crashes of a server and its worker."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.rpc import code_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from PIL import ExifTags, Image
from structlog.testing import capture_logs
from support import servers, tiny
from support.pictures import encode, picture, pictures
from support.servers import Running, failure

from topwork import CallFailed, Client, progress, result
from topwork.bundle.store import Repository
from topwork.client import probe
from topwork.config import ServeConfig
from topwork.rpc import server as rpc_server
from topwork.rpc.server import SERVICES
from topwork.runtime.supervisor import GAVE_UP
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import model_service_pb2_grpc as model_grpc

VIOLETS = [(f"violet-{n}.png", content) for n, content in enumerate(pictures("violet", 12))]
DEATHS = (
    "topwork.bundle.store:Repository.put_shard",
    "topwork.bundle.store:Repository.publish",
    "topwork.bundle.store:Repository.set_serving",
    "topwork.changes.worker:log.warning",  # "operation failed"
)


@pytest.fixture(scope="module")
def dying_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Yield a server whose worker dies once after each call in DEATHS."""
    repository = tiny.repository(tmp_path_factory.mktemp("dying_server") / "repository")
    with servers.running(repository.root, deaths=DEATHS) as started:
        yield started


def test_a_worker_that_dies_after_each_step_adds_the_class_once(dying_server: Running) -> None:
    """If the worker dies after the effect of each step, one new revision is published."""
    with Client(dying_server.address) as client:
        accepted = client.add_class("colours", "violet", VIOLETS)
        *_, finished = client.watch(accepted.name)
        assert [entry["event"] for entry in dying_server.log_entries].count("worker died") == 3
        assert result(finished).revision.revision == 2
        assert list(client.model("colours").revisions) == [1, 2]
        assert client.classify("colours", [picture("violet", 60)]).revision == 2


def test_a_worker_that_dies_while_failing_reports_the_reason(dying_server: Running) -> None:
    """A failed operation has its own error even if the worker dies while it reports it."""
    with Client(dying_server.address) as client:
        accepted = client.add_class("colours", "junk", [("note.txt", b"not a photo")])
        *_, finished = client.watch(accepted.name)
        assert code_pb2.Code.Name(finished.raw.error.code) == "FAILED_PRECONDITION"
        assert "'junk' has 0 usable images" in finished.raw.error.message


def test_a_cancel_after_serving_has_no_effect(colours: Repository) -> None:
    """An operation that is cancelled after its revision serves succeeds."""
    deaths = ["topwork.bundle.store:Repository.set_serving"]
    with servers.running(colours.root, deaths=deaths) as server, Client(server.address) as client:
        accepted = client.add_class("colours", "violet", VIOLETS)
        server.log_entry("worker died")
        client.cancel(accepted.name)
        *_, finished = client.watch(accepted.name)
        assert result(finished).revision.revision == 2
        assert client.model("colours").serving_revision.revision == 2


def test_conflicts_stay_in_the_progress_of_later_stages(colours: Repository) -> None:
    """Conflicts found while embedding are also reported while publishing."""
    deaths = ["topwork.changes.worker:DBOS.set_event=result"]
    with servers.running(colours.root, deaths=deaths) as server, Client(server.address) as client:
        mixed = [*VIOLETS, ("a blue one.png", picture("blue", 0))]
        client.add_class("colours", "violet", mixed)
        server.log_entry("worker died")
        (state,) = map(progress, client.operations())
        assert state.stage == change_pb.CHANGE_STAGE_PUBLISHING
        assert [(conflict.display_name, conflict.label) for conflict in state.conflicts] == [
            ("a blue one.png", "blue")
        ]


def test_a_cancel_before_serving_stops_the_revision(colours: Repository) -> None:
    """If an operation is cancelled just before its revision serves, the revision never serves."""
    deaths = ["topwork.changes.worker:DBOS.set_event=result"]
    with servers.running(colours.root, deaths=deaths) as server, Client(server.address) as client:
        accepted = client.add_class("colours", "violet", VIOLETS)
        server.log_entry("worker died")
        client.cancel(accepted.name)
        *_, finished = client.watch(accepted.name)
        assert failure(lambda: result(finished)).code == "CANCELLED"
        server.log_entry("worker ready", count=2)
        white = [(f"{n}.png", content) for n, content in enumerate(pictures("white", 12))]
        *_, after = client.watch(client.add_class("colours", "white", white).name)
        revision = result(after).revision
        assert (revision.revision, revision.parent_revision) == (3, 1)
        assert "violet" not in revision.labels


@pytest.mark.parametrize("end", [Running.kill, Running.stop])
def test_an_acknowledged_upload_survives_the_server(colours: Repository, end: object) -> None:
    """An upload acknowledged just before the server is killed or stopped is done later."""
    assert callable(end)
    with servers.running(colours.root) as first:
        with Client(first.address) as client:
            accepted = client.add_class("colours", "violet", VIOLETS * 20)
        end(first)
        assert first.wait_ended(), "a process is left"
    assert colours.serving("colours") == 1
    with servers.running(colours.root) as second, Client(second.address) as client:
        *_, finished = client.watch(accepted.name)
        assert result(finished).revision.revision == 2
        assert list(client.model("colours").revisions) == [1, 2]


def test_sigterm_lets_calls_in_flight_finish(colours: Repository) -> None:
    """On SIGTERM health is NOT_SERVING, new calls are refused, the call in flight is answered."""
    resume = threading.Event()

    def upload() -> Iterator[change_pb.AddClassRequest]:
        images = [
            change_pb.TrainingImage(display_name=name, content=image) for name, image in VIOLETS
        ]
        config = change_pb.AddClassConfig(model="models/colours", label="violet")
        yield change_pb.AddClassRequest(config=config, images=images[:1])
        resume.wait(servers.TIMEOUT)
        yield change_pb.AddClassRequest(images=images[1:])

    with (
        servers.running(colours.root, grace_seconds=servers.TIMEOUT) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        request = health_pb2.HealthCheckRequest(service=SERVICES[0])
        health = health_pb2_grpc.HealthStub(channel).Watch(request)
        assert next(health).status == health_pb2.HealthCheckResponse.SERVING
        answer = model_grpc.ModelServiceStub(channel).AddClass.future(upload())
        servers.eventually(lambda: list((colours.root / "images").glob("[0-9a-f]*")))
        server.process.terminate()
        assert next(health).status == health_pb2.HealthCheckResponse.NOT_SERVING
        health.cancel()
        with Client(server.address) as late:
            servers.eventually(lambda: is_unavailable(late))
        resume.set()
        assert answer.result(servers.TIMEOUT).name.startswith("operations/")
        assert server.process.wait(servers.TIMEOUT) == 0
        assert server.wait_ended(), "a process is left"


def is_unavailable(client: Client) -> bool:
    """Return whether the server refuses new calls."""
    try:
        client.classify("colours", [VIOLETS[0][1]], timeout=servers.TIMEOUT)
    except CallFailed as error:
        return bool(error.code == "UNAVAILABLE")
    return False


def test_sigterm_ends_calls_that_watch_operations(colours: Repository) -> None:
    """On SIGTERM calls that watch or wait for an operation end with UNAVAILABLE."""
    with (
        servers.running(colours.root, grace_seconds=servers.TIMEOUT, worker=False) as server,
        grpc.insecure_channel(server.address) as channel,
        Client(server.address) as client,
    ):
        accepted = client.add_class("colours", "violet", VIOLETS)
        watched = client.watch(accepted.name)
        assert not next(watched).done
        operations = operations_pb2_grpc.OperationsStub(channel)
        waited = operations.WaitOperation.future(
            operations_pb2.WaitOperationRequest(name=accepted.name)
        )
        # Calls on one connection arrive in order: when this is answered the server has the other.
        operations.GetOperation(operations_pb2.GetOperationRequest(name=accepted.name))
        assert server.stop() == 0
        assert failure(lambda: list(watched)).code == "UNAVAILABLE"
        assert failure(waited.result).code == "UNAVAILABLE"


def test_sigterm_ends_health_and_reflection_streams(colours: Repository) -> None:
    """Streams of health and reflection end at once on SIGTERM, without waiting for the grace.

    Health sends NOT_SERVING first.
    """
    ended = threading.Event()

    def questions() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="*")
        ended.wait(servers.TIMEOUT)

    with (
        servers.running(colours.root, grace_seconds=30.0) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(health).status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        reflected = reflection.ServerReflectionInfo(questions())
        names = {service.name for service in next(reflected).list_services_response.service}
        assert names >= set(SERVICES)
        before = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - before < 10
        assert next(health).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert failure(lambda: next(health)).code == "UNAVAILABLE"
        assert failure(lambda: next(reflected)).code == "UNAVAILABLE"
        ended.set()
        assert server.wait_ended(), "a process is left"


def test_health_follows_the_worker(colours: Repository) -> None:
    """Without a worker the services that change models are NOT_SERVING; Classify still works."""
    status = health_pb2.HealthCheckResponse
    classifies, models, review, operations, infers = SERVICES
    with (
        servers.running(colours.root, forked=False) as server,
        grpc.insecure_channel(server.address) as channel,
        Client(server.address) as client,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        watched = {
            service: stub.Watch(health_pb2.HealthCheckRequest(service=service))
            for service in ("", *SERVICES)
        }
        for stream in watched.values():  # some services first wait for the worker
            assert status.SERVING in (response.status for response in stream)
        first = server.worker()
        os.kill(first, signal.SIGKILL)
        for service in (models, review, operations):
            assert next(watched[service]).status == status.NOT_SERVING
        assert client.classify("colours", [VIOLETS[0][1]]).revision == 1
        for service in (models, review, operations):
            assert next(watched[service]).status == status.SERVING
        assert server.worker() != first
        assert server.stop() == 0
        for stream in watched.values():
            assert next(stream).status == status.NOT_SERVING
    for service in (models, review, operations):
        assert health_of(service, server)[-2:] == [False, True]
    for service in (classifies, infers):
        assert health_of(service, server) == []


def health_of(service: str, server: Running) -> list[bool]:
    """Return the health changes of a service in the log: True if SERVING."""
    return [entry["serving"] for entry in server.log_entries if entry.get("service") == service]


def test_a_worker_without_a_writable_repository_is_restarted(colours: Repository) -> None:
    """While the repository is not writable the worker gives up and is restarted; Classify works.

    ModelService stays NOT_SERVING until a worker is ready.
    """
    (colours.root / "workers").touch()  # a file where the worker needs a directory
    server = Running(servers.command(colours.root), colours.root)
    try:
        with Client(server.address) as client:
            died = server.log_entry("worker died")
            assert (died["exit_code"], died["pause"]) == (GAVE_UP, 2.0)
            assert "workers" in server.log_entry("worker gives up")["error"]
            assert client.classify("colours", [picture("blue", 60)]).revision == 1
            accepted = client.rename_class("colours", "blue", "azure")
            server.log_entry("worker died", count=2)
            assert health_of(SERVICES[1], server) == []  # NOT_SERVING since the start
            (colours.root / "workers").unlink()
            *_, finished = client.watch(accepted.name)
            assert result(finished).revision.revision == 2
            server.log_entry("health")
            assert health_of(SERVICES[1], server) == [True]
    finally:
        server.close()


def test_a_too_long_executor_name_exits_with_1(tmp_path: Path) -> None:
    """A server with a too long executor name prints one line and exits with 1."""
    long = Running([*servers.command(tmp_path), "--executor", "x" * 300], tmp_path)
    try:
        assert long.process.wait(servers.TIMEOUT) == 1
        assert long.wait_ended(), "a process is left"
        assert "error: executor 'xxx" in long.log
        assert "Traceback" not in long.log
    finally:
        long.close()


def test_a_call_longer_than_the_grace_is_cut_off(colours: Repository) -> None:
    """A call in flight longer than the grace is cut off; the exit status is still 0."""
    over = threading.Event()

    def upload() -> Iterator[change_pb.AddClassRequest]:
        config = change_pb.AddClassConfig(model="models/colours", label="violet")
        image = change_pb.TrainingImage(content=VIOLETS[0][1])
        yield change_pb.AddClassRequest(config=config, images=[image])
        over.wait(servers.TIMEOUT)

    with (
        servers.running(colours.root, grace_seconds=0.1, worker=False) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        answer = model_grpc.ModelServiceStub(channel).AddClass.future(upload())
        servers.eventually(lambda: list((colours.root / "images").glob("[0-9a-f]*")))
        assert server.stop() == 0
        error = failure(lambda: answer.result(servers.TIMEOUT))
        over.set()
        assert error.code in {"UNAVAILABLE", "CANCELLED"}


def test_the_server_limits_the_duration_of_a_call(colours: Repository) -> None:
    """A call without a deadline ends at the server's limit with DEADLINE_EXCEEDED."""
    with (
        servers.running(colours.root, max_seconds=0.002, worker=False) as server,
        Client(server.address) as client,
    ):
        large = picture("blue", 1, size=(1200, 900))
        error = failure(lambda: client.classify("colours", [large] * 8))
    assert (error.code, error.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_PASSED")
    assert "8 images were not classified within 0.002 s" in str(error)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    """`topwork serve` creates its repository, serves new models, and exits with 0."""
    server = Running(servers.command(tmp_path / "new"), tmp_path / "new")
    try:
        with Client(server.address) as client:
            assert list(client.models()) == []
            tiny.repository(tmp_path / "new")
            servers.eventually(lambda: list(client.models()))
            assert client.classify("colours", [picture("blue", 50)]).revision == 1
        os.kill(server.process.pid, number)
        assert server.process.wait(servers.TIMEOUT) == 0
        assert server.wait_ended(), "a process is left"
    finally:
        server.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_hanging_start(colours: Repository, number: signal.Signals) -> None:
    """A signal ends a server that waits for a database that does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/none"
        server = Running([*servers.command(colours.root), "--database", url], colours.root)
        try:
            silent.settimeout(servers.TIMEOUT)
            with silent.accept()[0]:  # the server's connection; it waits for an answer
                server.process.send_signal(number)
                assert server.process.wait(servers.TIMEOUT) == 0
            assert server.wait_ended(), "a process is left"
        finally:
            server.close()


@pytest.mark.parametrize("option", ["--address", "--health-port", "--metrics-port"])
def test_a_port_in_use_is_an_error_before_models_are_loaded(
    colours: Repository, server: Running, option: str
) -> None:
    """A server whose port is in use prints one line at once and exits with 1."""
    port = server.address.rpartition(":")[2]
    taken = f"127.0.0.1:{port}" if option == "--address" else port
    second = Running([*servers.command(colours.root), option, taken], colours.root)
    try:
        assert second.process.wait(servers.TIMEOUT) == 1
        assert second.wait_ended(), "a process is left"
        assert f"error: port {port} of 127.0.0.1 is in use" in second.log
        assert "Traceback" not in second.log
        assert [entry["event"] for entry in second.log_entries] == ["native output"], (
            "models were loaded"
        )
    finally:
        second.close()


def test_a_killed_second_server_leaves_no_worker(colours: Repository) -> None:
    """If a second server of a repository is killed, its worker ends while it waits for the lock."""
    with servers.running(colours.root, cores=1):
        second = Running(servers.command(colours.root), colours.root)
        try:
            second.log_entry("ready")
            waiting = second.worker()
            servers.eventually(lambda: waits_for_lock(waiting))
            second.kill()
            assert second.wait_ended(), "the worker is left"
        finally:
            second.close()


def waits_for_lock(pid: int) -> bool:
    """Return whether a process has the worker's lock file open."""
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed concurrently
            if path.readlink().name == "worker.lock":
                return True
    return False


def broken_tiff() -> bytes:
    """Return a TIFF with an invalid zlib stream, for which libtiff writes to standard error."""
    whole = encode(Image.new("L", (16, 16)), "TIFF", compression="tiff_adobe_deflate")
    with Image.open(io.BytesIO(whole)) as image:
        start = int(image.getexif()[ExifTags.Base.StripOffsets])
    return whole[:start] + b"\xde\xad" + whole[start + 2 :]


def test_every_line_of_a_json_log_is_json(colours: Repository) -> None:
    """Output of native decoders, in the server and in its worker, is logged as JSON."""
    broken = broken_tiff()
    server = Running(servers.command(colours.root), colours.root)
    try:
        server.log_entry("worker ready")
        with Client(server.address) as client:
            (answer,) = client.classify("colours", [broken]).results
            assert answer.error is not None
            server.log_entry("native output")
            accepted = client.add_class("colours", "violet", [*VIOLETS, ("bad.tif", broken)])
            assert result([*client.watch(accepted.name)][-1]).revision.revision == 2
            server.log_entry("native output", count=2)
        assert server.stop() == 0
        assert server.wait_ended(), "a process is left"
        for line in server.log.splitlines():
            assert isinstance(json.loads(line), dict)
    finally:
        server.close()


def test_a_crash_logs_python_stacks(colours: Repository) -> None:
    """A fatal signal in the worker or server logs the Python stacks of its threads."""
    with servers.running(colours.root, forked=False) as server:
        os.kill(server.worker(), signal.SIGSEGV)
        assert server.log_entry("worker died")["exit_code"] == -signal.SIGSEGV
        servers.eventually(lambda: "Fatal Python error: Segmentation fault" in server.log)
        servers.eventually(lambda: re.search(r"worker\.py\W+line \d+ in work\b", server.log))
        os.kill(server.process.pid, signal.SIGABRT)
        assert server.process.wait(servers.TIMEOUT) == -signal.SIGABRT
        assert server.wait_ended(), "a process is left"
        assert "Fatal Python error: Aborted" in server.log
        assert "in run" in server.log  # the server's


def test_a_part_that_hangs_is_abandoned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A component that hangs while closing is logged and does not block the exit."""

    class Hangs:
        def __init__(self, _: ServeConfig) -> None:
            pass

        async def start(self) -> None:
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)

        async def aclose(self) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(rpc_server, "Server", Hangs)
    monkeypatch.setattr(rpc_server, "CLOSING_SECONDS", 0.05)
    with capture_logs() as logged:
        asyncio.run(rpc_server.serve(ServeConfig(repository=tmp_path, grace_seconds=0.0)))
    assert [line["event"] for line in logged] == ["stopping", "not closed in time"]


def listening(repository: Repository, *options: str) -> Running:
    """Start a server with options instead of a port, and without a worker."""
    command = servers.command(repository.root)
    place = command.index("--address")
    return Running(
        [*command[:place], *command[place + 2 :], "--no-worker", *options], repository.root
    )


@pytest.mark.parametrize("option", ["--address", "--health-port"])
def test_a_second_server_on_a_socket_is_an_error(colours: Repository, option: str) -> None:
    """The second server exits with an error; the first still answers on its socket."""
    path = colours.root / "topwork.sock"
    own = {"--address": (), "--health-port": ("--address", "127.0.0.1:0")}[option]
    first = listening(colours, *own, option, f"unix:{path}")
    second = None
    try:
        first.log_entry("ready")
        second = listening(colours, *own, option, f"unix://{path}")
        assert second.process.wait(servers.TIMEOUT) == 1
        assert second.wait_ended()
        assert "another process listens there" in second.log
        assert probe.status(f"unix:{path}", "", servers.TIMEOUT) == "SERVING"
        assert first.stop() == 0
        assert not path.exists()
    finally:
        first.close()
        if second is not None:
            second.close()


def test_the_socket_of_a_killed_server_is_taken_over(colours: Repository) -> None:
    """The next server listens on the socket file that a killed server left."""
    address = f"unix:{colours.root}/topwork.sock"
    first = listening(colours, "--address", address)
    second = None
    try:
        first.log_entry("ready")
        first.kill()
        second = listening(colours, "--address", address, "--metrics-port", "0")
        second.log_entry("ready")
        with Client(address) as client:
            assert client.classify("colours", [picture("blue", 50)]).revision == 1
        assert second.stop() == 0
    finally:
        first.close()
        if second is not None:
            second.close()


def test_a_socket_of_another_program_is_not_taken_over(colours: Repository) -> None:
    """A program that listens without the lock file, such as an older server, is detected."""
    path = colours.root / "topwork.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        server = listening(colours, "--address", f"unix:{path}")
        try:
            assert server.process.wait(servers.TIMEOUT) == 1
            assert server.wait_ended()
            assert "another process listens there" in server.log
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
        finally:
            server.close()
