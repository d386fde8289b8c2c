"""How a server starts, stops and dies, and what is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
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
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Yield a server whose worker dies, once each, after the calls in DEATHS."""
    repository = tiny.repository(tmp_path_factory.mktemp("mortal") / "repository")
    with servers.running(repository.root, deaths=DEATHS) as started:
        yield started


def test_a_worker_that_dies_between_any_two_steps_adds_the_class_once(mortal: Running) -> None:
    """However often the worker dies after a step's effect, there is one new revision, serving."""
    with Client(mortal.address) as client:
        accepted = client.add_class("colours", "violet", VIOLETS)
        *_, finished = client.watch(accepted.name)
        assert [fact["event"] for fact in mortal.facts].count("worker died") == 3
        assert result(finished).revision.revision == 2
        assert list(client.model("colours").revisions) == [1, 2]
        assert client.classify("colours", [picture("violet", 60)]).revision == 2


def test_a_worker_that_dies_keeps_the_reason_of_a_failure(mortal: Running) -> None:
    """An operation that fails has its own error also when the worker dies while it says so."""
    with Client(mortal.address) as client:
        accepted = client.add_class("colours", "junk", [("note.txt", b"not a photo")])
        *_, finished = client.watch(accepted.name)
        assert code_pb2.Code.Name(finished.raw.error.code) == "FAILED_PRECONDITION"
        assert "'junk' has 0 usable images" in finished.raw.error.message


def test_a_cancel_that_comes_too_late_changes_nothing(colours: Repository) -> None:
    """An operation that is cancelled when its revision serves already is a success."""
    deaths = ["topwork.bundle.store:Repository.set_serving"]
    with servers.running(colours.root, deaths=deaths) as server, Client(server.address) as client:
        accepted = client.add_class("colours", "violet", VIOLETS)
        server.fact("worker died")
        client.cancel(accepted.name)
        *_, finished = client.watch(accepted.name)
        assert result(finished).revision.revision == 2
        assert client.model("colours").serving_revision.revision == 2


def test_conflicts_are_told_until_the_end(colours: Repository) -> None:
    """What showed another label's image when all were embedded is told while it publishes, too."""
    deaths = ["topwork.changes.worker:DBOS.set_event=result"]
    with servers.running(colours.root, deaths=deaths) as server, Client(server.address) as client:
        mixed = [*VIOLETS, ("a blue one.png", picture("blue", 0))]
        client.add_class("colours", "violet", mixed)
        server.fact("worker died")
        (state,) = map(progress, client.operations())
        assert state.stage == change_pb.CHANGE_STAGE_PUBLISHING
        assert [(one.display_name, one.label) for one in state.conflicts] == [
            ("a blue one.png", "blue")
        ]


def test_a_cancel_that_comes_in_time_keeps_a_revision_from_serving(colours: Repository) -> None:
    """An operation that is cancelled just before its revision serves ends so, and it never does."""
    deaths = ["topwork.changes.worker:DBOS.set_event=result"]
    with servers.running(colours.root, deaths=deaths) as server, Client(server.address) as client:
        accepted = client.add_class("colours", "violet", VIOLETS)
        server.fact("worker died")
        client.cancel(accepted.name)
        *_, finished = client.watch(accepted.name)
        assert failure(lambda: result(finished)).code == "CANCELLED"
        server.fact("worker ready", count=2)
        white = [(f"{n}.png", content) for n, content in enumerate(pictures("white", 12))]
        *_, after = client.watch(client.add_class("colours", "white", white).name)
        revision = result(after).revision
        assert (revision.revision, revision.parent_revision) == (3, 1)
        assert "violet" not in revision.labels


@pytest.mark.parametrize("end", [Running.kill, Running.stop])
def test_an_acknowledged_upload_outlives_the_server(colours: Repository, end: object) -> None:
    """A server that is killed or stopped right after it accepted an upload learns it later."""
    assert callable(end)
    with servers.running(colours.root) as first:
        with Client(first.address) as client:
            accepted = client.add_class("colours", "violet", VIOLETS * 20)
        end(first)
        assert first.gone(), "a process was left behind"
    assert colours.serving("colours") == 1
    with servers.running(colours.root) as second, Client(second.address) as client:
        *_, finished = client.watch(accepted.name)
        assert result(finished).revision.revision == 2
        assert list(client.model("colours").revisions) == [1, 2]


def test_calls_in_flight_end_before_the_server_does(colours: Repository) -> None:
    """On SIGTERM health turns, new calls are refused, the one under way is answered; status 0."""
    go_on = threading.Event()

    def upload() -> Iterator[change_pb.AddClassRequest]:
        images = [change_pb.TrainingImage(display_name=name, content=one) for name, one in VIOLETS]
        config = change_pb.AddClassConfig(model="models/colours", label="violet")
        yield change_pb.AddClassRequest(config=config, images=images[:1])
        go_on.wait(servers.PATIENCE)
        yield change_pb.AddClassRequest(images=images[1:])

    with (
        servers.running(colours.root, grace_seconds=servers.PATIENCE) as server,
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
            servers.eventually(lambda: refused(late))
        go_on.set()
        assert answer.result(servers.PATIENCE).name.startswith("operations/")
        assert server.process.wait(servers.PATIENCE) == 0
        assert server.gone(), "a process was left behind"


def refused(client: Client) -> bool:
    """Return whether the server takes no more calls."""
    try:
        client.classify("colours", [VIOLETS[0][1]], timeout=servers.PATIENCE)
    except CallFailed as error:
        return bool(error.code == "UNAVAILABLE")
    return False


def test_who_watches_does_not_hold_the_server(colours: Repository) -> None:
    """On SIGTERM all who watch or wait for an operation are told to come again; status 0."""
    with (
        servers.running(colours.root, grace_seconds=servers.PATIENCE, worker=False) as server,
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
        # Calls of one connection arrive in order: when this one is answered the other is there.
        operations.GetOperation(operations_pb2.GetOperationRequest(name=accepted.name))
        assert server.stop() == 0
        assert failure(lambda: list(watched)).code == "UNAVAILABLE"
        assert failure(waited.result).code == "UNAVAILABLE"


def test_open_streams_do_not_hold_the_server(colours: Repository) -> None:
    """Who watches health or reflects holds no server whose calls have ended, long as its grace is.

    Each of them is told: health turns, then both streams end.
    """
    over = threading.Event()

    def questions() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="*")
        over.wait(servers.PATIENCE)

    with (
        servers.running(colours.root, grace_seconds=30.0) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(health).status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        reflected = reflection.ServerReflectionInfo(questions())
        names = {one.name for one in next(reflected).list_services_response.service}
        assert names >= set(SERVICES)
        before = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - before < 2
        assert next(health).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert failure(lambda: next(health)).code == "UNAVAILABLE"
        assert failure(lambda: next(reflected)).code == "UNAVAILABLE"
        over.set()
        assert server.gone(), "a process was left behind"


def test_health_follows_the_worker(colours: Repository) -> None:
    """Without its worker ModelService is NOT_SERVING until there is a new one; Classify works on.

    What learns and what classifies are told apart.
    """
    status = health_pb2.HealthCheckResponse
    classifies, models, operations, infers = SERVICES
    with (
        servers.running(colours.root) as server,
        grpc.insecure_channel(server.address) as channel,
        Client(server.address) as client,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        watched = {
            service: stub.Watch(health_pb2.HealthCheckRequest(service=service))
            for service in ("", *SERVICES)
        }
        for one in watched.values():  # what needs the worker may wait for its word
            assert status.SERVING in (said.status for said in one)
        first = server.worker()
        os.kill(first, signal.SIGKILL)
        for service in (models, operations):
            assert next(watched[service]).status == status.NOT_SERVING
        assert client.classify("colours", [VIOLETS[0][1]]).revision == 1
        for service in (models, operations):
            assert next(watched[service]).status == status.SERVING
        assert server.worker() != first
        assert server.stop() == 0
        for one in watched.values():  # the others never heard of a change but the last
            assert next(one).status == status.NOT_SERVING
    for service in (models, operations):
        assert health_of(service, server)[-2:] == [False, True]
    for service in (classifies, infers):
        assert health_of(service, server) == []


def health_of(service: str, server: Running) -> list[bool]:
    """Return whether a service was SERVING, each time that the log tells of a change."""
    return [fact["serving"] for fact in server.facts if fact.get("service") == service]


def test_a_worker_that_cannot_work_gives_up_and_comes_again(colours: Repository) -> None:
    """While the repository cannot be written to the worker ends by itself; Classify goes on.

    Health says so all the while, however often the worker is started in vain.
    """
    (colours.root / "workers").touch()  # no directory can be made there
    server = Running(servers.command(colours.root), colours.root)
    try:
        with Client(server.address) as client:
            died = server.fact("worker died")
            assert (died["exit_code"], died["pause"]) == (GAVE_UP, 2.0)
            assert "workers" in server.fact("worker gives up")["error"]
            assert client.classify("colours", [picture("blue", 60)]).revision == 1
            accepted = client.rename_class("colours", "blue", "azure")
            server.fact("worker died", count=2)
            assert health_of(SERVICES[1], server) == []  # as at the start
            (colours.root / "workers").unlink()
            *_, finished = client.watch(accepted.name)
            assert result(finished).revision.revision == 2
            server.fact("health")
            assert health_of(SERVICES[1], server) == [True]
    finally:
        server.close()


def test_a_name_that_no_worker_can_have_is_an_error(tmp_path: Path) -> None:
    """A server whose executor's name is too long says so in one line and ends with status 1."""
    long = Running([*servers.command(tmp_path), "--executor", "x" * 300], tmp_path)
    try:
        assert long.process.wait(servers.PATIENCE) == 1
        assert long.gone(), "a process was left behind"
        assert "error: executor 'xxx" in long.log
        assert "Traceback" not in long.log
    finally:
        long.close()


def test_the_grace_is_an_end_too(colours: Repository) -> None:
    """A call that is under way longer than the grace is cut off; the status is 0 all the same."""
    over = threading.Event()

    def upload() -> Iterator[change_pb.AddClassRequest]:
        config = change_pb.AddClassConfig(model="models/colours", label="violet")
        image = change_pb.TrainingImage(content=VIOLETS[0][1])
        yield change_pb.AddClassRequest(config=config, images=[image])
        over.wait(servers.PATIENCE)

    with (
        servers.running(colours.root, grace_seconds=0.1, worker=False) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        answer = model_grpc.ModelServiceStub(channel).AddClass.future(upload())
        servers.eventually(lambda: list((colours.root / "images").glob("[0-9a-f]*")))
        assert server.stop() == 0
        error = failure(lambda: answer.result(servers.PATIENCE))
        over.set()
        assert error.code in {"UNAVAILABLE", "CANCELLED"}


def test_the_server_limits_what_a_call_may_take(colours: Repository) -> None:
    """A call without a deadline ends at the server's own, and says so."""
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
    """`topwork serve` makes its repository, serves what is published, ends with status 0."""
    server = Running(servers.command(tmp_path / "new"), tmp_path / "new")
    try:
        with Client(server.address) as client:
            assert list(client.models()) == []
            tiny.repository(tmp_path / "new")
            servers.eventually(lambda: list(client.models()))
            assert client.classify("colours", [picture("blue", 50)]).revision == 1
        os.kill(server.process.pid, number)
        assert server.process.wait(servers.PATIENCE) == 0
        assert server.gone(), "a process was left behind"
    finally:
        server.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_start_that_hangs(colours: Repository, number: signal.Signals) -> None:
    """A database that takes connections and says nothing holds no server that is to stop."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/none"
        server = Running([*servers.command(colours.root), "--database", url], colours.root)
        try:
            silent.settimeout(servers.PATIENCE)
            with silent.accept()[0]:  # by the server, which now waits for it
                server.process.send_signal(number)
                assert server.process.wait(servers.PATIENCE) == 0
            assert server.gone(), "a process was left behind"
        finally:
            server.close()


@pytest.mark.parametrize("option", ["--address", "--health-port", "--metrics-port"])
def test_a_taken_port_is_told_before_models_are_loaded(
    colours: Repository, server: Running, option: str
) -> None:
    """A server that cannot have a port says so in one line, at once, and ends with status 1."""
    port = server.address.rpartition(":")[2]
    taken = f"127.0.0.1:{port}" if option == "--address" else port
    second = Running([*servers.command(colours.root), option, taken], colours.root)
    try:
        assert second.process.wait(servers.PATIENCE) == 1
        assert second.gone(), "a process was left behind"
        assert f"error: port {port} of 127.0.0.1 is in use" in second.log
        assert "Traceback" not in second.log
        assert [fact["event"] for fact in second.facts] == ["native output"], "all was loaded"
    finally:
        second.close()


def test_a_second_server_leaves_no_orphan(colours: Repository) -> None:
    """When a second server of a repository is killed, its worker ends, though it was waiting."""
    with servers.running(colours.root, cores=1):
        second = Running(servers.command(colours.root), colours.root)
        try:
            second.fact("ready")
            waiting = second.worker()
            servers.eventually(lambda: waits_for_lock(waiting))
            second.kill()
            assert second.gone(), "the worker was left behind"
        finally:
            second.close()


def waits_for_lock(pid: int) -> bool:
    """Return whether a process has the lock file of the name ``worker`` open."""
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if path.readlink().name == "worker.lock":
                return True
    return False


def broken_tiff() -> bytes:
    """Return a TIFF whose pixels are no zlib stream, of which libtiff tells standard error."""
    whole = encode(Image.new("L", (16, 16)), "TIFF", compression="tiff_adobe_deflate")
    with Image.open(io.BytesIO(whole)) as image:
        start = int(image.getexif()[ExifTags.Base.StripOffsets])
    return whole[:start] + b"\xde\xad" + whole[start + 2 :]


def test_every_line_of_a_json_log_is_json(colours: Repository) -> None:
    """What native decoders write, in the server and in its worker, is no line of its own kind."""
    broken = broken_tiff()
    server = Running(servers.command(colours.root), colours.root)
    try:
        server.fact("worker ready")
        with Client(server.address) as client:
            (answer,) = client.classify("colours", [broken]).results
            assert answer.error is not None
            server.fact("native output")
            accepted = client.add_class("colours", "violet", [*VIOLETS, ("bad.tif", broken)])
            assert result([*client.watch(accepted.name)][-1]).revision.revision == 2
            server.fact("native output", count=2)
        assert server.stop() == 0
        assert server.gone(), "a process was left behind"
        for line in server.log.splitlines():
            assert isinstance(json.loads(line), dict)
    finally:
        server.close()


def test_a_crash_shows_where(colours: Repository) -> None:
    """SIGSEGV in the worker or the server leaves the Python stacks of its threads in the log."""
    with servers.running(colours.root) as server:
        os.kill(server.worker(), signal.SIGSEGV)
        assert server.fact("worker died")["exit_code"] == -signal.SIGSEGV
        servers.eventually(lambda: "Fatal Python error: Segmentation fault" in server.log)
        assert "in watch" in server.log  # the worker's main thread
        os.kill(server.process.pid, signal.SIGABRT)
        assert server.process.wait(servers.PATIENCE) == -signal.SIGABRT
        assert server.gone(), "a process was left behind"
        assert "Fatal Python error: Aborted" in server.log
        assert "in run" in server.log  # the server's


def test_what_hangs_after_the_grace_holds_no_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A part that does not close, such as for a disk that is away, is told of and left."""

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
    """Return a server that was started with options instead of a port."""
    command = servers.command(repository.root)
    place = command.index("--address")
    return Running(
        [*command[:place], *command[place + 2 :], "--no-worker", *options], repository.root
    )


@pytest.mark.parametrize("option", ["--address", "--health-port"])
def test_a_second_server_on_a_socket_is_an_error(colours: Repository, option: str) -> None:
    """It says so and ends; the first one's socket is still there, and is answered."""
    path = colours.root / "topwork.sock"
    own = {"--address": (), "--health-port": ("--address", "127.0.0.1:0")}[option]
    first = listening(colours, *own, option, f"unix:{path}")
    second = None
    try:
        first.fact("ready")
        second = listening(colours, *own, option, f"unix://{path}")
        assert second.process.wait(servers.PATIENCE) == 1
        assert second.gone()
        assert "another process listens there" in second.log
        assert probe.status(f"unix:{path}", "", servers.PATIENCE) == "SERVING"
        assert first.stop() == 0
        assert not path.exists()
    finally:
        first.close()
        if second is not None:
            second.close()


def test_the_socket_of_a_server_that_was_killed_is_taken_over(colours: Repository) -> None:
    """Nobody listens on what a killed server leaves; the next one does, and answers clients."""
    address = f"unix:{colours.root}/topwork.sock"
    first = listening(colours, "--address", address)
    second = None
    try:
        first.fact("ready")
        first.kill()
        second = listening(colours, "--address", address, "--metrics-port", "0")
        second.fact("ready")
        with Client(address) as client:
            assert client.classify("colours", [picture("blue", 50)]).revision == 1
        assert second.stop() == 0
    finally:
        first.close()
        if second is not None:
            second.close()


def test_a_socket_of_another_program_is_left_alone(colours: Repository) -> None:
    """One that listens and takes no lock, an older server for one, is noticed all the same."""
    path = colours.root / "topwork.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        server = listening(colours, "--address", f"unix:{path}")
        try:
            assert server.process.wait(servers.PATIENCE) == 1
            assert server.gone()
            assert "another process listens there" in server.log
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
        finally:
            server.close()
