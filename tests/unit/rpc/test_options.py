"""Behaviour of each channel option, since gRPC silently ignores a misspelt one.

Times are a hundredth of the real ones.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest
from grpc_channelz.v1 import channelz, channelz_pb2, channelz_pb2_grpc
from support.dns import Names
from support.raw_http2 import MAX_CONCURRENT_STREAMS, Peer

import topwork
from topwork.client import calls
from topwork.limits import DEFAULT_LIMITS
from topwork.rpc.options import CALLS_A_CONNECTION, of_server

Options: TypeAlias = Sequence[tuple[str, Any]]

FASTER = 100
SOON = 30.0
"""Seconds after which what a test waits for will not come."""
MOST = 2**20
SOURCES = Path(topwork.__file__).parent


def faster(*options: Options) -> list[tuple[str, Any]]:
    """Return options with all times shortened."""
    return [
        (name, value // FASTER if name.endswith("_ms") else value)
        for given in options
        for name, value in given
    ]


def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
    """Answer with as many bytes as the request says; fail if it says so."""
    if request.startswith(b"fail"):
        context.abort(grpc.StatusCode.UNAVAILABLE, "try again")
    return bytes(int(request.rstrip(b" ") or b"0"))


def stream(request: bytes, _: grpc.ServicerContext) -> Iterator[bytes]:
    """Answer at once and then after as many seconds as the request says."""
    yield b"begun"
    time.sleep(float(request))
    yield b"ended"


@contextmanager
def serving(
    options: Options,
    *,
    handle: Callable[..., bytes] = answer,
    services: Sequence[str] = ("x",),
    host: str = "127.0.0.1",
    port: int = 0,
) -> Iterator[int]:
    """Serve on a port, by default a free one, and yield it."""
    server = grpc.server(futures.ThreadPoolExecutor(4), options=options)
    for service in services:
        handlers: dict[str, Any] = {
            "Answer": grpc.unary_unary_rpc_method_handler(handle),
            "GetModel": grpc.unary_unary_rpc_method_handler(handle),
            "Stream": grpc.unary_stream_rpc_method_handler(stream),
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    channelz.add_channelz_servicer(server)
    port = server.add_insecure_port(f"{host}:{port}")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


@contextmanager
def accepting(*, call: bool = False) -> Iterator[Peer]:
    """Yield the server's end of a client's connection, with a call that is never answered."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        target = f"127.0.0.1:{listener.getsockname()[1]}"
        channel = stack.enter_context(grpc.insecure_channel(target, faster(calls.OPTIONS)))
        if call:
            method: Any = channel.unary_unary("/x/Answer")
            stack.callback(method.future(b"").cancel)
        else:
            grpc.channel_ready_future(channel)
        connection, _ = listener.accept()
        yield stack.enter_context(Peer(connection))


def ask(channel: grpc.Channel, request: bytes, path: str = "/x/Answer") -> bytes:
    """Return what a server answers."""
    method: Any = channel.unary_unary(path)
    found: bytes = method(request, timeout=SOON)
    return found


def assert_too_long(channel: grpc.Channel, request: bytes, most: int) -> None:
    """Assert that a call fails, since its request or answer is longer than ``most``."""
    with pytest.raises(grpc.RpcError) as caught:
        ask(channel, request)
    error = calls.failed(caught.value)
    assert error.code == "RESOURCE_EXHAUSTED"
    assert f"{most + 1} vs. {most}" in str(error)


def test_every_option_is_known_to_grpc() -> None:
    """Each name in our sources is in gRPC's binary, which a misspelt one is not."""
    (binary,) = (path.read_bytes() for path in Path(grpc.__file__).parent.rglob("cygrpc*.so"))
    names = {
        name
        for path in SOURCES.rglob("*.py")
        for name in re.findall(r'\("(grpc\.[a-z0-9_.]+)"', path.read_text(encoding="utf-8"))
    }
    given = {name for name, _ in of_server(MOST, connection_seconds=1.0)}
    assert given | {name for name, _ in calls.OPTIONS} <= names
    assert [name for name in names if name.encode() not in binary] == []
    assert b"grpc.http2.min_recv_ping_interval_without_data_ms" not in binary


@pytest.mark.slow
def test_server_accepts_pings_without_calls() -> None:
    """Any number of pings is accepted if they are far enough apart, without data or calls."""
    interval = 10.0 / FASTER
    with serving(faster(of_server(MOST))) as port, Peer.connect(port) as client:
        for _ in range(8):
            client.ping()
            assert not client.wait(1.5 * interval, closed=True), client.goaway


def test_server_ends_connections_that_ping_too_often() -> None:
    """A client that pings without pause is disconnected after a few pings."""
    with serving(faster(of_server(MOST))) as port, Peer.connect(port) as client:
        for _ in range(4):
            client.ping()
        assert client.wait(SOON, closed=True)
        assert client.goaway == b"too_many_pings"


@pytest.mark.slow
def test_server_pings_idle_clients() -> None:
    """The server repeatedly checks whether a client without calls is still there."""
    with serving(faster(of_server(MOST))) as port, Peer.connect(port) as client:
        assert client.wait(SOON, pings=4)


def test_server_limits_calls_of_a_connection() -> None:
    """The client's gRPC queues further calls."""
    with serving(of_server(MOST)) as port, Peer.connect(port) as client:
        assert client.wait(SOON, settings=True)
        assert client.settings[MAX_CONCURRENT_STREAMS] == CALLS_A_CONNECTION


def test_server_does_not_share_its_port() -> None:
    """A second server on the port is an error."""
    with serving(of_server(MOST)) as port:
        second = grpc.server(futures.ThreadPoolExecutor(1), options=of_server(MOST))
        with pytest.raises(RuntimeError):
            second.add_insecure_port(f"127.0.0.1:{port}")


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_server_refuses_compressed_messages(algorithm: grpc.Compression) -> None:
    """GRPC would decompress a request completely before it checks the limit."""
    with (
        serving(of_server(MOST)) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        method: Any = channel.unary_unary("/x/Answer")
        with pytest.raises(grpc.RpcError) as caught:
            method(b"7".ljust(1000), compression=algorithm, timeout=SOON)
    assert calls.failed(caught.value).code == "UNIMPLEMENTED"


def test_server_limits_messages_in_both_directions() -> None:
    """One byte more than the limit is RESOURCE_EXHAUSTED; the limit itself is accepted."""
    with (
        serving(of_server(MOST)) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}", calls.OPTIONS) as channel,
    ):
        assert len(ask(channel, b"%d" % MOST)) == MOST
        assert_too_long(channel, b"%d" % (MOST + 1), MOST)
        assert ask(channel, b"7".ljust(MOST)) == bytes(7)
        assert_too_long(channel, b"7".ljust(MOST + 1), MOST)


@pytest.mark.slow
def test_old_connection_ends_after_its_calls() -> None:
    """The client must reconnect, and its running call continues to the end."""
    options = of_server(MOST, connection_seconds=0.2)
    with serving(options) as port, Peer.connect(port) as client:
        assert client.wait(SOON, closed=True)
        assert client.goaway == b"max_age"
    with serving(options) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        method: Any = channel.unary_stream("/x/Stream")
        assert list(method(b"0.5", timeout=SOON)) == [b"begun", b"ended"]


def test_connections_have_no_maximum_age_by_default() -> None:
    """Without the option no connection ends by itself."""
    assert "grpc.max_connection_age_ms" not in dict(of_server(MOST))


@pytest.mark.parametrize("on", [True, False])
def test_channelz_is_off_by_default(on: bool) -> None:
    """By default gRPC would count connections in either case."""
    with (
        serving(of_server(MOST, channelz=on)) as port,
        Peer.connect(port) as client,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        assert client.wait(SOON, settings=True)
        stub = channelz_pb2_grpc.ChannelzStub(channel)
        sockets = [
            found.name
            for server in stub.GetServers(channelz_pb2.GetServersRequest(), timeout=SOON).server
            for found in stub.GetServerSockets(
                channelz_pb2.GetServerSocketsRequest(server_id=server.ref.server_id), timeout=SOON
            ).socket_ref
        ]
        assert any(name.endswith(f":{client.port}") for name in sockets) == on


@pytest.mark.slow
def test_client_pings_without_calls() -> None:
    """So a load balancer does not treat the connection as dead."""
    with accepting() as server:
        assert server.wait(SOON, pings=1)


@pytest.mark.slow
def test_client_pings_during_a_silent_call() -> None:
    """By default gRPC stops after two pings without data."""
    with accepting(call=True) as server:
        assert server.wait(SOON, pings=3)


def test_client_disconnects_from_unresponsive_host() -> None:
    """The kernel closes a connection whose bytes are not acknowledged within that time."""
    wanted = dict(faster(calls.OPTIONS))["grpc.keepalive_timeout_ms"]
    with accepting():
        assert wanted in user_timeouts()


def user_timeouts() -> set[int]:
    """Return TCP_USER_TIMEOUT of all of this process's connections, in milliseconds."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            with socket.socket(fileno=os.dup(int(entry.name))) as copy:
                found.add(copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
        except OSError:
            continue  # no socket, none of TCP, or closed meanwhile
    return found


@pytest.mark.slow
def test_client_accepts_messages_up_to_the_default_limit() -> None:
    """The limit is the server's default, not gRPC's own 4 MiB; longer messages fail."""
    most = DEFAULT_LIMITS.max_message_bytes
    with serving([]) as port, grpc.insecure_channel(f"127.0.0.1:{port}", calls.OPTIONS) as channel:
        assert len(ask(channel, b"%d" % most)) == most
        assert_too_long(channel, b"%d" % (most + 1), most)


def test_client_refuses_to_send_too_long_message() -> None:
    """A message beyond the servers' default limit fails before it is sent."""
    most = DEFAULT_LIMITS.max_message_bytes
    unlimited = [("grpc.max_receive_message_length", -1)]
    with (
        serving(unlimited) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}", calls.OPTIONS) as channel,
    ):
        assert_too_long(channel, bytes(most + 1), most)


def test_client_balances_calls_over_addresses() -> None:
    """Calls go to all addresses of a name in turns, as the service config says."""
    asked: list[int] = []

    def note(number: int) -> Callable[..., bytes]:
        def handle(*_: object) -> bytes:
            asked.append(number)
            return b""

        return handle

    with serving([], handle=note(1)) as first, serving([], handle=note(2)) as second:
        target = f"ipv4:127.0.0.1:{first},127.0.0.1:{second}"
        with grpc.insecure_channel(target, calls.OPTIONS) as channel:
            while len(set(asked)) < 2:  # the second connection may come later
                ask(channel, b"")
            del asked[:]
            for _ in range(10):
                ask(channel, b"")
    assert (asked.count(1), asked.count(2)) == (5, 5)


def test_client_resolves_a_name_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls reach the successor of the only known server within seconds; by default after 30."""
    monkeypatch.setenv("no_proxy", "*")
    with Names(["127.0.0.2"]) as names, ExitStack() as stack:
        first = ExitStack()
        port = first.enter_context(serving([], host="127.0.0.2"))
        channel = stack.enter_context(grpc.insecure_channel(names.target("x", port), calls.OPTIONS))
        assert ask(channel, b"1") == bytes(1)
        stack.enter_context(serving([], host="127.0.0.3", port=port))
        names.addresses = ["127.0.0.3"]
        first.close()
        began = time.monotonic()
        method: Any = channel.unary_unary("/x/Answer")
        assert method(b"1", timeout=SOON, wait_for_ready=True) == bytes(1)
    assert time.monotonic() - began < 10


def test_client_throttles_retries() -> None:
    """Four attempts each, until half of the throttle's tokens are spent; then a single attempt."""
    attempts: list[int] = [0]

    def count(request: bytes, context: grpc.ServicerContext) -> bytes:
        attempts[-1] += 1
        return answer(request, context)

    service, method = "topwork.v1.ModelService", "GetModel"
    with (
        serving([], handle=count, services=[service]) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}", quickly()) as channel,
    ):
        for _ in range(5):
            with pytest.raises(grpc.RpcError):
                ask(channel, b"fail", f"/{service}/{method}")
            attempts.append(0)
    assert attempts == [4, 4, 2, 1, 1, 0]


def quickly() -> list[tuple[str, Any]]:
    """Return the client's options with pauses between attempts that take no time."""
    options = dict(calls.OPTIONS)
    config = json.loads(str(options["grpc.service_config"]))
    for method in config["methodConfig"]:
        method["retryPolicy"] |= {"initialBackoff": "0.001s", "maxBackoff": "0.001s"}
    return [*{**options, "grpc.service_config": json.dumps(config)}.items()]
