"""The HTTP/JSON gateway beside a server, called with a plain HTTP client."""

from __future__ import annotations

import base64
import json
import os
import signal
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from support import http_calls, servers, tiny
from support.certificates import Authority
from support.http_calls import ask, events
from support.pictures import picture, pictures
from support.servers import Running

from topwork import Client
from topwork.access import tokens
from topwork.gateway.methods import Method, methods, services
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import classifier_service_pb2_grpc as classify_grpc

GREEN = picture("green", 80)
BLUE = picture("blue", 81)
CLASSIFY = "/v1/models/colours:classify"
WRITER, READER = tokens.make(), tokens.make()


def labels(answer: http_calls.Answer) -> list[str]:
    """Return the most probable label of each image."""
    assert answer.code == 200, answer.body
    return [
        result["classification"]["predictions"][0]["label"] for result in answer.json["results"]
    ]


def test_form_and_json_and_raw_image_classify_like_grpc(server: Running, client: Client) -> None:
    """A form, JSON with base64 and a raw image get the probabilities of a gRPC call."""
    encoded = base64.b64encode(GREEN).decode()
    answers = [
        ask(server.http, CLASSIFY, form=[("image", ("a.png", GREEN))]),
        ask(server.http, CLASSIFY, tree={"images": [encoded]}),
        ask(server.http, CLASSIFY, body=GREEN, headers={"content-type": "image/png"}),
    ]
    (expected,) = client.classify("colours", [GREEN]).results
    for answer in answers:
        (result,) = answer.json["results"]
        rows = result["classification"]["predictions"]
        for (label, probability), row in zip(expected.predictions, rows, strict=True):
            assert row["label"] == label
            assert row["probability"] == pytest.approx(probability, abs=1e-6)
        assert answer.json["revision"] == "1"


def test_form_has_several_images_and_fields_in_any_order(server: Running) -> None:
    """Files of any field names are the images, in their order; other parts are fields."""
    form: http_calls.Parts = [
        ("first", ("a.png", GREEN)),
        ("top_k", "1"),
        ("second", ("b.png", b"junk")),
        ("third", ("c.png", BLUE)),
    ]
    first, second, third = ask(server.http, CLASSIFY, form=form).json["results"]
    assert [row["label"] for row in first["classification"]["predictions"]] == ["green"]
    assert second["error"]["details"][0]["reason"].startswith("IMAGE_")
    assert third["classification"]["predictions"][0]["label"] == "blue"


def test_query_sets_fields_beside_a_raw_image(server: Running) -> None:
    """``?topK=2`` limits the predictions of an image that is the body."""
    answer = ask(
        server.http, f"{CLASSIFY}?topK=2", body=GREEN, headers={"content-type": "image/png"}
    )
    assert len(answer.json["results"][0]["classification"]["predictions"]) == 2


def test_explain_takes_one_file(server: Running) -> None:
    """A form or a raw image, and fields beside it; two files are refused."""
    path = "/v1/models/colours:explain"
    for answer in (
        ask(server.http, path, form=[("image", ("a.png", GREEN)), ("neighbours", "2")]),
        ask(server.http, f"{path}?neighbours=2", body=GREEN, headers={"content-type": "image/png"}),
    ):
        assert answer.code == 200, answer.body
        assert (answer.json["label"], len(answer.json["neighbours"])) == ("green", 2)
    two = ask(server.http, path, form=[("a", ("a.png", GREEN)), ("b", ("b.png", BLUE))])
    assert two.code == 400
    assert "has 2 files, not one" in two.json["error"]["message"]


def test_add_class_streams_to_its_end(server: Running, model: str) -> None:
    """A form teaches a class; events tell the progress, and the last one stops the browser."""
    photos = [("images", (f"{n}.png", image)) for n, image in enumerate(_violet(8))]
    added = ask(server.http, f"/v1/models/{model}:addClass", form=[("label", "violet"), *photos])
    assert added.code == 200, added.body
    name = added.json["name"]
    watched = list(events(ask(server.http, f"/v1/{name}:watch").body))
    assert watched[-1] == {"event": "end", "id": "end", "data": "{}"}
    last = json.loads(watched[-2]["data"])["operation"]
    assert last["done"]
    assert last["response"]["imagesUsed"] == 8
    assert ask(server.http, f"/v1/{name}").json["response"] == last["response"]
    ended = ask(server.http, f"/v1/{name}:watch", headers={"last-event-id": "end"})
    assert (ended.code, ended.body) == (204, b"")
    found = ask(
        server.http, f"/v1/models/{model}:classify", form=[("image", ("v.png", _violet(9)[8]))]
    )
    assert labels(found) == ["violet"]
    query = "?filter=label%20%3D%20%22violet%22&pageSize=2"
    page = ask(server.http, f"/v1/models/{model}/examples{query}").json
    assert (len(page["examples"]), page["totalSize"]) == (2, 8)
    assert page["examples"][0]["displayName"].endswith(".png")


def test_add_classes_takes_the_fields_of_files_as_labels(server: Running, model: str) -> None:
    """Files of several labels come in one form, each in the field of its label."""
    form: list[tuple[str, str | tuple[str, bytes]]] = [("labels", "violet"), ("labels", "blue")]
    form += [("violet", (f"{n}.png", image)) for n, image in enumerate(_violet(6))]
    form += [("blue", (f"b{n}.png", picture("blue", 50 + n))) for n in range(2)]
    added = ask(server.http, f"/v1/models/{model}:addClasses", form=form)
    assert added.code == 200, added.body
    done = ask(server.http, f"/v1/{added.json['name']}:wait", tree={}).json
    assert done["response"]["imagesUsed"] == 8, done


def test_evaluate_takes_the_fields_of_files_as_labels(server: Running) -> None:
    """The operation's response is the evaluation, and the stored set has a path."""
    form: list[tuple[str, str | tuple[str, bytes]]] = [("evaluationSet", "by-form")]
    form += [("green", ("g.png", GREEN)), ("blue", ("b.png", BLUE)), ("blue", ("c.png", GREEN))]
    operation = ask(server.http, "/v1/models/colours:evaluate", form=form)
    assert operation.code == 200, operation.body
    done = ask(server.http, f"/v1/{operation.json['name']}:wait", tree={})
    metrics = done.json["response"]["metrics"]
    assert {row["label"]: row["images"] for row in metrics["perLabel"] if row["images"]} == {
        "blue": 2,
        "green": 1,
    }
    path = "/v1/models/colours/evaluationSets"
    assert [found["name"] for found in ask(server.http, path).json["evaluationSets"]] == [
        "models/colours/evaluationSets/by-form"
    ]
    assert ask(server.http, f"{path}/by-form", verb="DELETE").code == 200


def test_operation_is_waited_for_and_listed(server: Running, model: str) -> None:
    """``:wait`` returns the finished operation; a form without files sends plain fields."""
    removed = ask(
        server.http,
        f"/v1/models/{model}:removeClass",
        body=b"label=green",
        headers={"content-type": "application/x-www-form-urlencoded"},
    )
    name = removed.json["name"]
    done = ask(server.http, f"/v1/{name}:wait", tree={"timeout": "60s"}).json
    assert done["done"]
    assert "green" not in done["response"]["revision"]["labels"]
    listed = ask(server.http, f"/v1/operations?filter=model%20%3D%20models/{model}").json
    assert [operation["name"] for operation in listed["operations"]] == [name]


def test_stream_classify_answers_json_lines(server: Running) -> None:
    """Each line is a request, and gets an answer or an error of its own."""
    image = base64.b64encode(GREEN).decode()
    lines = [
        {"id": number, "request": {"model": f"models/{model}", "images": [image], "topK": 1}}
        for number, model in ((1, "colours"), (2, "unknown"))
    ]
    answer = ask(
        server.http,
        "/v1/models:streamClassify",
        body="\n".join(map(json.dumps, lines)).encode(),
        headers={"content-type": "application/x-ndjson"},
    )
    found = {row["id"]: row for row in map(json.loads, answer.body.splitlines())}
    assert found["1"]["response"]["results"][0]["classification"]["predictions"]
    assert found["2"]["error"]["code"] == grpc.StatusCode.NOT_FOUND.value[0]


@pytest.mark.parametrize(
    ("path", "more", "expected"),
    [
        ("/v1/models/none", {}, (404, "NOT_FOUND", "NOT_FOUND")),
        ("/v1/other", {}, (404, "NOT_FOUND", "PATH_UNKNOWN")),
        ("/v1/models/", {}, (404, "NOT_FOUND", "PATH_UNKNOWN")),
        ("/v1/models/../models", {}, (404, "NOT_FOUND", "PATH_UNKNOWN")),
        ("/v1/models/a%2Fb", {}, (400, "INVALID_ARGUMENT", "PATH_AMBIGUOUS")),
        ("/v1//models", {}, (400, "INVALID_ARGUMENT", "PATH_AMBIGUOUS")),
        (CLASSIFY, {}, (405, "UNIMPLEMENTED", "METHOD_UNKNOWN")),
        ("/v1/models?pageSize=x", {}, (400, "INVALID_ARGUMENT", "INVALID_INPUT")),
        ("/v1/models?colour=red", {}, (400, "INVALID_ARGUMENT", "INVALID_INPUT")),
        ("/v1/models?pageSize=1&page_size=2", {}, (400, "INVALID_ARGUMENT", "INVALID_INPUT")),
        (CLASSIFY, {"tree": {}}, (400, "INVALID_ARGUMENT", "INVALID_INPUT")),
        (CLASSIFY, {"tree": {"model": "models/x"}}, (400, "INVALID_ARGUMENT", "INVALID_INPUT")),
        (f"{CLASSIFY}?topK=1", {"tree": {}}, (400, "INVALID_ARGUMENT", "INVALID_INPUT")),
        (
            CLASSIFY,
            {"body": b"{}", "headers": {"content-type": "text/plain"}},
            (415, "INVALID_ARGUMENT", "MEDIA_TYPE"),
        ),
        (
            CLASSIFY,
            {"tree": {}, "headers": {"content-encoding": "gzip"}},
            (415, "INVALID_ARGUMENT", "MEDIA_TYPE"),
        ),
        (
            "/v1/models",
            {"headers": {"host": "evil.example"}},
            (421, "INVALID_ARGUMENT", "HOST_UNKNOWN"),
        ),
        (
            CLASSIFY,
            {"tree": {}, "headers": {"origin": "https://evil.example"}},
            (403, "PERMISSION_DENIED", "CROSS_ORIGIN"),
        ),
        (
            CLASSIFY,
            {"form": [("image", ("a.png", GREEN))], "headers": {"x-server-timeout": "1e-9"}},
            (400, "INVALID_ARGUMENT", "INVALID_INPUT"),
        ),
        (
            CLASSIFY,
            {"form": [("image", ("a.png", GREEN))], "headers": {"x-server-timeout": "0.000001"}},
            (504, "DEADLINE_EXCEEDED", ""),
        ),
        (
            "/v1/models/none:addClass",
            {"form": [("label", "x"), ("image", ("a.png", GREEN))]},
            (404, "NOT_FOUND", "NOT_FOUND"),
        ),
        (
            "/v1/models/colours:addClass",
            {"form": [("image", ("a.png", GREEN)), ("label", "x")]},
            (400, "INVALID_ARGUMENT", "INVALID_INPUT"),
        ),
        (
            "/v1/models/colours:addClass",
            {"form": [("label", "x"), ("label", "y"), ("image", ("a.png", GREEN))]},
            (400, "INVALID_ARGUMENT", "INVALID_INPUT"),
        ),
        (
            "/v1/models/colours:addClass",
            {"body": http_calls.encode([("image", ("a.png", GREEN))])[:-9]},
            (400, "INVALID_ARGUMENT", "INVALID_MULTIPART"),
        ),
    ],
)
def test_wrong_request_gets_code_and_reason(
    server: Running, path: str, more: dict[str, object], expected: tuple[int, str, str]
) -> None:
    """Each error has its HTTP code, the name of its google.rpc.Code and a reason."""
    if "body" in more and "headers" not in more:
        more = {**more, "headers": {"content-type": http_calls.FORM}}
    answer = ask(server.http, path, **more)  # type: ignore[arg-type]  # of the table
    if answer.code == 504:  # whether the server or gRPC in the gateway notices first
        assert answer.error in (expected, (504, "DEADLINE_EXCEEDED", "DEADLINE_PASSED"))
    else:
        assert answer.error == expected
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


def test_bad_json_names_the_position(server: Running) -> None:
    """The message has line and column."""
    answer = ask(
        server.http,
        CLASSIFY,
        body=b'{"topK": 1,\n "images": [nope]}',
        headers={"content-type": "application/json"},
    )
    assert "line 2, column 13" in answer.json["error"]["message"]


def test_body_that_is_announced_too_long_is_refused_unread(server: Running) -> None:
    """A gigabyte is refused by its Content-Length, and the connection closes."""
    connection = http_calls.connect(server.http)
    connection.putrequest("POST", CLASSIFY)
    connection.putheader("content-type", "application/json")
    connection.putheader("content-length", str(10**9))
    connection.endheaders()
    response = connection.getresponse()
    assert (response.status, response.getheader("connection")) == (413, "close")
    assert json.loads(response.read())["error"]["details"][0]["reason"] == "BODY_TOO_LARGE"
    connection.close()


def test_client_that_leaves_cancels_the_call(server: Running) -> None:
    """A connection that closes in the middle of an upload cancels the call of the server."""
    started = len(_calls(server, "AddExamples"))
    connection = http_calls.connect(server.http)
    connection.putrequest("POST", "/v1/models/colours:addExamples")
    connection.putheader("content-type", http_calls.FORM)
    connection.putheader("transfer-encoding", "chunked")
    connection.endheaders()
    images = [("image", ("a.png", bytes(3 * 2**20)))] * 3  # an image waits for the next one
    part = http_calls.encode([("label", "green"), *images])[:-20]
    connection.send(b"%x\r\n%b\r\n" % (len(part), part))
    connection.close()
    entry = servers.eventually(lambda: _calls(server, "AddExamples")[started:])[0]
    assert entry["code"] == "CANCELLED", entry


def test_caller_is_logged_by_its_own_address(server: Running) -> None:
    """The server knows HTTP callers by their hosts, and believes nobody else."""
    ask(server.http, "/v1/models/who-http", source="127.0.0.2")
    with grpc.insecure_channel(server.address) as channel:
        stub = classify_grpc.ClassifierServiceStub(channel)
        forged = (("topwork-gateway-secret", "x" * 64), ("topwork-gateway-peer", "ipv4:6.6.6.6:1"))
        with pytest.raises(grpc.RpcError):
            stub.Classify(
                classify_pb.ClassifyRequest(model="models/who-grpc", images=[b"x"]), metadata=forged
            )
    by_http, by_grpc = (
        servers.eventually(
            lambda name=name: [  # type: ignore[misc]  # its default
                entry["peer"] for entry in server.log_entries if name in entry.get("error", "")
            ]
        )[0]
        for name in ("who-http", "who-grpc")
    )
    assert by_http == "ipv4:127.0.0.2:http"
    assert by_grpc.startswith("ipv4:127.0.0.1:")


def test_probes_and_description(server: Running) -> None:
    """Probes need no credentials; the description has the path of each method."""
    assert ask(server.http, "/livez").body == b"ok\n"
    assert ask(server.http, "/readyz").body == b"ok\n"
    described = ask(server.http, "/openapi.json").json
    assert {method.template.path for method in methods(services())} == set(described["paths"])


def test_gateway_that_died_is_started_again(server: Running) -> None:
    """Connections wait for the next gateway: none is refused."""
    os.kill(server.gateway(), signal.SIGKILL)
    assert ask(server.http, "/livez").code == 200


def test_stop_ends_event_streams_and_answers_what_is_in_flight(tmp_path: Path) -> None:
    """A server that stops ends watches without their last event, and exits with status 0."""
    repository = tiny.repository(tmp_path / "repository")
    with servers.running(repository.root, worker=False, http_port="127.0.0.1:0") as started:
        added = ask(started.http, "/v1/models/colours:retrain", tree={})
        connection = http_calls.connect(started.http)
        connection.request("GET", f"/v1/{added.json['name']}:watch")
        response = connection.getresponse()
        assert response.readline() == b"id: 1\n"
        ended = threading.Thread(target=response.read)
        ended.start()
        assert started.stop() == 0
        ended.join(servers.TIMEOUT)
        assert not ended.is_alive()
        response.close()
        connection.close()
        assert "Traceback" not in started.log


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return the authority of the guarded server."""
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def guarded(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Yield a server with TLS, tokens, a key for gateways, and CORS for one origin."""
    folder = tmp_path_factory.mktemp("guarded")
    access, key = folder / "access.toml", folder / "key"
    access.write_text(
        f"[principals.writer]\ntokens = ['{WRITER.entry}']\nadmin = ['*']\n"
        f"[principals.reader]\ntokens = ['{READER.entry}']\nclassify = ['colours']\n"
    )
    key.write_text("k" * 40)
    with servers.running(
        tiny.repository(folder / "repository").root,
        worker=False,
        **servers.tls(authority.issue("server")),
        access=str(access),
        gateway_key=str(key),
        http_port="127.0.0.1:0",
        http_cors_origins="https://app.example",
    ) as started:
        yield started


@pytest.fixture(scope="module")
def trusting(authority: Authority) -> ssl.SSLContext:
    """Return a TLS context that trusts the authority."""
    return ssl.create_default_context(cafile=authority.ca)


def _with(token: tokens.NewToken) -> dict[str, str]:
    return {"authorization": f"Bearer {token.token}"}


@pytest.mark.parametrize("method", methods(services()), ids=lambda method: method.rpc)
def test_every_method_wants_a_token(
    guarded: Running, trusting: ssl.SSLContext, method: Method
) -> None:
    """Without a token each method answers 401, and says how to authenticate."""
    path = method.template.path.format(**dict.fromkeys(method.template.parameters, "colours"))
    body, headers = None, {}
    if method.verb == "POST":
        body, headers = b"{}", {"content-type": "application/json"}
    answer = ask(guarded.http, path, verb=method.verb, body=body, headers=headers, tls=trusting)
    assert answer.error == (401, "UNAUTHENTICATED", "CREDENTIALS_MISSING")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_roles_are_respected(guarded: Running, trusting: ssl.SSLContext) -> None:
    """A token with the role classify classifies, and may not change the model."""
    form = [("image", ("a.png", GREEN))]
    answer = ask(guarded.http, CLASSIFY, form=form, headers=_with(READER), tls=trusting)
    assert labels(answer) == ["green"]
    refused = ask(
        guarded.http, "/v1/models/colours:retrain", tree={}, headers=_with(READER), tls=trusting
    )
    assert refused.error == (403, "PERMISSION_DENIED", "ROLE_MISSING")
    assert READER.token not in guarded.log


def test_cors_is_for_the_named_origin_alone(guarded: Running, trusting: ssl.SSLContext) -> None:
    """Pages of the origin may call, with errors that they can read; others may not."""
    asked = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    ours = {"origin": "https://app.example"}
    allowed = ask(guarded.http, CLASSIFY, verb="OPTIONS", headers={**ours, **asked}, tls=trusting)
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    failed = ask(guarded.http, CLASSIFY, tree={}, headers=ours, tls=trusting)
    assert (failed.code, failed.headers["access-control-allow-origin"]) == (
        401,
        "https://app.example",
    )
    other = {"origin": "https://evil.example", **asked}
    refused = ask(guarded.http, CLASSIFY, verb="OPTIONS", headers=other, tls=trusting)
    assert "access-control-allow-origin" not in refused.headers


def test_gateway_alone_calls_a_server_with_tls(
    guarded: Running, authority: Authority, tmp_path: Path
) -> None:
    """``topwork gateway`` passes tokens on, and names its callers with the key."""
    key = tmp_path / "key"
    key.write_text("k" * 40 + "\n")
    options = [
        "--server",
        guarded.address,
        "--server-ca",
        authority.ca,
        "--http-port",
        "127.0.0.1:0",
    ]
    command = [sys.executable, "-m", "topwork.cli", "gateway", *map(str, options)]
    alone = Running([*command, "--gateway-key", str(key), "--log-format", "json"], tmp_path)
    try:
        address = f"127.0.0.1:{alone.log_entry('ready')['port']}"
        form = [("image", ("a.png", GREEN))]
        headers = _with(READER)
        answer = ask(address, CLASSIFY, form=form, headers=headers, source="127.0.0.3")
        assert labels(answer) == ["green"]
        assert servers.eventually(
            lambda: [e for e in guarded.log_entries if e.get("peer") == "ipv4:127.0.0.3:http"]
        )
        assert alone.stop() == 0
    finally:
        alone.close()


def _calls(server: Running, name: str) -> list[dict[str, object]]:
    return [
        entry
        for entry in server.log_entries
        if entry.get("event") == "call" and str(entry["method"]).endswith(f"/{name}")
    ]


def _violet(count: int) -> list[bytes]:
    return pictures("violet", count)
