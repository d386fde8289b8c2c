"""Turns in the queue of images: who makes many calls at once does not delay the others."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from support import infers, servers, tiny
from support.http_calls import Answer, ask
from support.pictures import picture, pictures
from support.servers import Running

from topwork.access import tokens
from topwork.bundle.store import Repository
from topwork.inference import inference_service_pb2_grpc as inference_grpc
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import classifier_service_pb2_grpc as classify_grpc

TOKENS = {name: tokens.make() for name in ("greedy", "modest")}
CALLS = 40
QUEUE_LIMIT = 15
"""The greedy client tries to have three times as many images in the server."""

GREEDY = """
import asyncio, sys
from topwork import AsyncClient, CallFailed, Credentials
address, token, calls = sys.argv[1], sys.argv[2], int(sys.argv[3])
picture = sys.stdin.buffer.read()

async def call(client):
    while True:
        try:
            await client.classify("colours", [picture], timeout=60)
            return
        except CallFailed as error:
            assert error.code == "RESOURCE_EXHAUSTED", error
            await asyncio.sleep(0.02)

async def main():
    async with AsyncClient(address, Credentials(token=token)) as client:
        print("started", flush=True)
        await asyncio.gather(*(call(client) for _ in range(calls)))

asyncio.run(main())
"""


@pytest.fixture(params=["principals", "connections"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    """Yield a server that takes a tenth of a second for an image, with or without tokens."""
    repository = Repository(tmp_path / "repository")
    exemplars = tiny.embed_pictures({label: pictures(label, 10) for label in ("amber", "blue")})
    tiny.publish(repository, "colours", exemplars, backbone=tiny.busy_backbone_model())
    settings: dict[str, Any] = {"http_port": "127.0.0.1:0"}
    if request.param == "principals":
        settings["access"] = str(tmp_path / "access.toml")
        entries = (
            f"[principals.{name}]\ntokens = ['{token.entry}']\nadmin = ['*']\n"
            for name, token in TOKENS.items()
        )
        Path(settings["access"]).write_text("".join(entries))
    with servers.running(
        repository.root, worker=False, queue_limit=QUEUE_LIMIT, **settings
    ) as running:
        yield running


@pytest.mark.parametrize("can_infer", [False, True], ids=["Classify", "ModelInfer"])
def test_modest_client_is_served_beside_a_greedy_one(server: Running, can_infer: bool) -> None:
    """Each of its calls is admitted, and waits for a few images only."""
    content = picture("blue", 1)
    bearer = (("authorization", f"Bearer {TOKENS['modest'].token}"),)
    token = TOKENS["greedy"].token
    with subprocess.Popen(
        [sys.executable, "-c", GREEDY, server.address, token, str(CALLS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as greedy:
        assert greedy.stdin is not None
        assert greedy.stdout is not None
        greedy.stdin.write(content)
        greedy.stdin.close()
        assert greedy.stdout.readline() == b"started\n"
        start = time.monotonic()
        with grpc.insecure_channel(server.address) as channel:
            time.sleep(0.5)  # until the queue is full
            begun = time.monotonic()
            for _ in range(3):
                if can_infer:
                    stub = inference_grpc.GRPCInferenceServiceStub(channel)
                    stub.ModelInfer(infers.request([content]), metadata=bearer)
                else:
                    request = classify_pb.ClassifyRequest(model="models/colours", images=[content])
                    classify_grpc.ClassifierServiceStub(channel).Classify(request, metadata=bearer)
            taken = time.monotonic() - begun
        assert greedy.wait(60) == 0
        assert taken < (time.monotonic() - start) / 2


@pytest.mark.parametrize("server", ["connections"], indirect=True)
def test_modest_http_client_is_served_beside_a_greedy_one(server: Running) -> None:
    """Hosts that call the gateway take turns, however many connections one of them opens."""
    form = [("image", ("a.png", picture("blue", 1)))]

    def classify(source: str) -> Answer:
        answer = ask(server.http, "/v1/models/colours:classify", form=form, source=source)
        while source == "127.0.0.1" and answer.code == 429:
            time.sleep(0.02)
            answer = ask(server.http, "/v1/models/colours:classify", form=form, source=source)
        return answer

    start = time.monotonic()
    with ThreadPoolExecutor(CALLS) as pool:
        greedy = [pool.submit(classify, "127.0.0.1") for _ in range(CALLS)]
        time.sleep(0.5)  # until the queue is full
        begun = time.monotonic()
        modest = [classify("127.0.0.2").code for _ in range(3)]
        taken = time.monotonic() - begun
    assert modest == [200, 200, 200]
    assert {call.result().code for call in greedy} == {200}
    assert taken < (time.monotonic() - start) / 2
