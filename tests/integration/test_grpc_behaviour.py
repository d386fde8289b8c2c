"""gRPC behaviour of server and client: malformed calls, retries, tracing, reflection, addresses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import Default
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from support import servers, tiny
from support.pictures import pictures
from support.servers import Command, Running

from topwork import AsyncClient, CallFailed, Client
from topwork.client import calls
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import classifier_service_pb2_grpc as classify_grpc
from topwork.v1 import model_service_pb2 as model_pb
from topwork.v1 import model_service_pb2_grpc as model_grpc

DOCS = Path(__file__).parents[2] / "docs"
CLASSIFY = "/topwork.v1.ClassifierService/Classify"
STREAM = "/topwork.v1.ClassifierService/StreamClassify"
TRACE = "0af7651916cd43dd8448eb211c80319c"


def test_compressed_requests_are_refused(channel: grpc.Channel) -> None:
    """A compressed request is UNIMPLEMENTED, since gRPC has no limit on its decompressed size."""
    stub = classify_grpc.ClassifierServiceStub(channel)
    request = classify_pb.ClassifyRequest(model="models/colours", images=pictures("blue", 2))
    error = servers.failure(lambda: stub.Classify(request, compression=grpc.Compression.Gzip))
    assert error.code == "UNIMPLEMENTED"
    assert "gzip" in str(error)


@pytest.mark.parametrize("path", [CLASSIFY, STREAM, "/topwork.v1.ModelService/AddClass"])
def test_a_malformed_message_is_an_invalid_argument(channel: grpc.Channel, path: str) -> None:
    """Bytes that are no valid message are INVALID_ARGUMENT with details."""
    method: Any = channel.stream_unary(path)
    with pytest.raises(grpc.RpcError) as caught:
        method(iter([b"\xff\xff\xff"]), timeout=30)
    error = calls.failed(caught.value)
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_INPUT")
    assert servers.fields(error) == ["request"]


def test_a_call_without_a_message_is_an_invalid_argument(channel: grpc.Channel) -> None:
    """A unary call that ends without a message is INVALID_ARGUMENT."""
    method: Any = channel.stream_unary(CLASSIFY)
    with pytest.raises(grpc.RpcError) as caught:
        method(iter([]), timeout=30)
    assert calls.failed(caught.value).code == "INVALID_ARGUMENT"


def test_the_access_line_has_the_trace(server: Running, channel: grpc.Channel) -> None:
    """The access line of a call has the trace id of its W3C trace context."""
    stub = model_grpc.ModelServiceStub(channel)
    parent = ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01")
    stub.GetModel(model_pb.GetModelRequest(name="models/colours"), metadata=(parent,))
    line = servers.eventually(
        lambda: next(
            (entry for entry in server.log_entries if entry.get("trace_id") == TRACE), None
        )
    )
    assert (line["event"], line["code"]) == ("call", "OK")


def test_a_token_that_is_not_ascii_is_not_logged(tmp_path: Path) -> None:
    """GRPC logs metadata that it cannot decode, such as a token, without the value.

    No gRPC client sends such bytes: these HTTP/2 frames are written by hand.
    """
    secret = b"topwork_0123456789ab_" + 8 * b"s3cret"

    def field(name: bytes, value: bytes) -> bytes:  # a literal of at most 126 bytes (RFC 7541)
        return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        head = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
        return head + payload

    headers = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": b"/topwork.v1.ModelService/ListModels",
        b":authority": b"localhost",
        b"te": b"trailers",
        b"content-type": b"application/grpc",
        b"authorization": b"Bearer " + secret + b"\xff",
        b"cookie": b"s3cret\xff",
    }
    call = frame(1, 4, 1, b"".join(field(*header) for header in headers.items()))
    with servers.running(tmp_path / "repository", worker=False) as started:
        host, port = started.address.split(":")
        with socket.create_connection((host, int(port)), servers.TIMEOUT) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + call)
            connection.sendall(frame(0, 1, 1, bytes(5)))
            started.log_entry("call")
        assert "Invalid encoding on" in started.log
        assert "s3cret" not in started.log


def test_the_service_config_names_methods_of_the_contract() -> None:
    """The published service config is the client's, and all its methods exist."""
    config = json.loads(calls.SERVICE_CONFIG)
    assert (DOCS / "service-config.json").read_text() == calls.SERVICE_CONFIG
    for method in (name for policy in config["methodConfig"] for name in policy["name"]):
        service = Default().FindServiceByName(method["service"])
        assert method["method"] in service.methods_by_name
        assert method["method"] not in {"Rollback", "DeleteOperation", "StreamClassify"}


class Failing:
    """GetModel that fails with ``code`` the first ``times`` calls, then succeeds."""

    def __init__(self, code: grpc.StatusCode, times: int) -> None:
        self.code = code
        self.times = times
        self.calls = 0

    async def answer(self, request: bytes, context: Any) -> bytes:
        """Answer a call."""
        assert request
        self.calls += 1
        if self.calls <= self.times:
            await context.abort(self.code, "try again")
        return model_pb.Model(name="models/x").SerializeToString()


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize(
    ("code", "attempts"),
    [
        (grpc.StatusCode.UNAVAILABLE, 3),
        (grpc.StatusCode.CANCELLED, 3),  # gRPC's answer to calls that arrive as a server stops
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 1),
    ],
)
def test_client_retries_calls_of_a_stopping_server(
    code: grpc.StatusCode, attempts: int, blocking: bool
) -> None:
    """The client retries UNAVAILABLE and CANCELLED; it reports RESOURCE_EXHAUSTED to the caller."""

    async def scenario() -> int:
        failing = Failing(code, 2)
        server = grpc.aio.server()
        handlers: dict[str, Any] = {"GetModel": grpc.unary_unary_rpc_method_handler(failing.answer)}
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("topwork.v1.ModelService", handlers)]
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        address = f"127.0.0.1:{port}"
        try:
            if blocking:
                with Client(address) as client:
                    await asyncio.to_thread(client.model, "x")
            else:
                async with AsyncClient(address) as other:
                    await other.model("x")
        except CallFailed as error:
            assert error.code == code.name  # noqa: PT017  # the other codes raise nothing
        finally:
            await server.stop(None)
        return failing.calls

    assert asyncio.run(scenario()) == attempts


def test_old_connections_are_replaced_and_reflection_can_be_off(tmp_path: Path) -> None:
    """Clients reconnect after the maximum age of a connection, without a failed call."""
    repository = tiny.repository(tmp_path / "repository")
    with servers.running(
        repository.root, worker=False, connection_seconds=0.2, reflection=False
    ) as started:
        with Client(started.address) as client:

            def peers() -> set[str]:
                client.model("colours")
                lines = [entry for entry in started.log_entries if entry["event"] == "call"]
                return {entry["peer"] for entry in lines}

            assert servers.eventually(lambda: len(peers()) > 1)
        with grpc.insecure_channel(started.address) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            error = servers.failure(lambda: list(stub.ServerReflectionInfo(iter([request]))))
    assert error.code == "UNIMPLEMENTED"


def test_spans_are_sent_to_the_collector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unused_address: str
) -> None:
    """Spans of a call and its stages, children of the client's, arrive before the server ends.

    A proxy in the server's environment is not used for a collector on the loopback.
    """
    repository = tiny.repository(tmp_path / "repository")
    monkeypatch.setenv("http_proxy", f"http://{unused_address}")
    monkeypatch.delenv("no_proxy", raising=False)
    with collector() as (endpoint, received):
        with servers.running(repository.root, worker=False, otlp_endpoint=endpoint) as started:
            with grpc.insecure_channel(started.address, calls.DIRECT) as channel:
                stub = classify_grpc.ClassifierServiceStub(channel)
                request = classify_pb.ClassifyRequest(
                    model="models/colours", images=pictures("blue", 2)
                )
                parent = ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01")
                stub.Classify(request, metadata=(parent,), timeout=30)
            assert started.stop() == 0
        spans = [
            span
            for export in received
            for resource in export.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
    assert {span.name for span in spans} == {CLASSIFY[1:], "queue", "decode", "backbone", "head"}
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    (call,) = (span for span in spans if span.name == CLASSIFY[1:])
    assert {span.parent_span_id for span in spans if span is not call} == {call.span_id}


@contextlib.contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """Yield the URL of a collector of spans, and its received requests."""
    received: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", received
        finally:
            server.shutdown()
            thread.join()


def test_print_config_prints_without_the_password(topwork: Command, tmp_path: Path) -> None:
    """`serve --print-config` prints the effective configuration without the database's password."""
    options = ("--database", "postgresql://me:secret@127.0.0.1/topwork", "--print-config")
    code, out, errors = topwork("serve", "--repository", tmp_path, *options, address="[::1]:7")
    settings = json.loads(out)
    assert (code, settings["address"], settings["database"]) == (
        0,
        "[::1]:7",
        "postgresql://***@127.0.0.1/topwork",
    )
    assert "secret" not in out + errors


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--tls-cert", "server.pem"), "go together"),
        (("--client-ca", "ca.pem"), "go together"),
        (("--health-port", "here"), "'here' has no port"),
        (("--health-port", "70000"), "'127.0.0.1:70000' has the port '70000'"),
        (("--mtls-address", "here"), "'here' has no port"),
        (("--database", "topwork"), "is no URL"),
        (("--otlp-endpoint", "localhost:4318"), "is no URL"),
    ],
)
def test_contradictory_options_are_usage_errors(
    topwork: Command, tmp_path: Path, options: tuple[str, str], why: str
) -> None:
    """Incompatible or malformed options are usage errors before anything is opened."""
    code, _, errors = topwork("serve", "--repository", tmp_path, *options, "--print-config")
    assert code == 2
    assert why in " ".join(errors.split())


@pytest.mark.parametrize("command", [("serve", "--repository", "r"), ("models",), ("health",)])
def test_an_address_without_a_port_exits_with_2(topwork: Command, command: tuple[str, ...]) -> None:
    """Server and client name --address in the error, not plaintext or an absent server."""
    code, _, errors = topwork(*command, address="localhost")
    assert code == 2
    assert "'--address': 'localhost' has no port: write HOST:PORT" in " ".join(errors.split())


def test_a_client_accepts_names_that_grpc_resolves(server: Running, topwork: Command) -> None:
    """An address with a scheme of gRPC, such as dns:///, is passed to gRPC."""
    code, out, _ = topwork("health", address=f"dns:///{server.address}")
    assert (code, out) == (0, "SERVING\n")


def test_plaintext_for_other_hosts_does_not_start(tmp_path: Path) -> None:
    """A plaintext server for other hosts does not start; the error names --insecure."""
    serve = ("serve", "--repository", str(tmp_path), "--address", "0.0.0.0:0")
    done = subprocess.run(
        [sys.executable, "-m", "topwork.cli", *serve],
        capture_output=True,
        text=True,
        check=False,
        timeout=servers.TIMEOUT,
    )
    assert done.returncode == 1
    assert "--insecure" in done.stderr
    assert "ready" not in done.stderr
