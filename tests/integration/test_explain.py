"""Explain on a running server, and ``topwork explain``."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from support import pooling, servers, tiny
from support.pictures import picture
from support.servers import Command, Running, encoders_of

import topwork as public
from topwork import Client
from topwork.bundle.comparison import Gate, Rejection
from topwork.bundle.store import Repository

FLOWER, _ = pooling.flower("crimson", 70)


@pytest.fixture(scope="module")
def discs(server: Running, client: Client) -> str:
    """Return the name of a served model whose backbone has maps."""
    pooling.repository(server.repository, name="discs")
    servers.eventually(lambda: any(model.name == "models/discs" for model in client.models()))
    return "discs"


def test_server_and_this_process_explain_alike(server: Running, client: Client, discs: str) -> None:
    """Map, region, predictions and neighbours."""
    served = client.explain(discs, FLOWER, neighbours=3)
    local = public.open(server.repository, discs).explain(FLOWER, neighbours=3)
    assert served.label == local.label == "crimson"
    assert served.neighbours == local.neighbours
    assert served.map is not None
    assert local.map is not None
    assert served.map.region == local.map.region
    for row, expected in zip(served.map.values, local.map.values, strict=True):
        assert row == pytest.approx(expected, abs=1e-5)
    assert client.classify(discs, [FLOWER]).results[0] == served.result
    example = client.get_example(discs, served.neighbours[0].digest)
    assert (example.label, example.preview) == ("crimson", served.neighbours[0].preview)


def test_killed_encoder_processes_come_back_with_the_map(
    server: Running, client: Client, discs: str
) -> None:
    """They load the backbone's variant again."""
    expected = client.explain(discs, FLOWER)
    for _ in range(2):
        for pid in encoders_of(server.process.pid):
            os.kill(pid, signal.SIGKILL)
        again = client.explain(discs, FLOWER, timeout=60)
        assert again.map is not None
        assert again.map == expected.map
        assert again.neighbours == expected.neighbours


def test_bad_requests_have_their_errors(server: Running, client: Client, discs: str) -> None:
    """Unknown label, rejected revision, draft, unreadable image, too many neighbours."""
    repository = Repository(server.repository)
    manifest = repository.manifest(discs, 1)
    rejection = Rejection(gate=Gate(), failures=("recall 0.5 is below 0.6",))
    rejected = tiny.publish_copy(repository, replace(manifest, rejection=rejection)).revision
    client.create_model("explain-draft", like=discs)
    for call, code, reason in (
        (lambda: client.explain(discs, FLOWER, label="tulip"), "NOT_FOUND", "NOT_FOUND"),
        (
            lambda: client.explain(discs, FLOWER, revision=rejected),
            "FAILED_PRECONDITION",
            "REVISION_REJECTED",
        ),
        (
            lambda: client.explain("explain-draft", FLOWER),
            "FAILED_PRECONDITION",
            None,
        ),
        (lambda: client.explain(discs, b"nothing"), "INVALID_ARGUMENT", "IMAGE_UNREADABLE"),
        (lambda: client.explain(discs, FLOWER, neighbours=51), "INVALID_ARGUMENT", None),
        (lambda: client.explain(discs, FLOWER, neighbours=-1), "INVALID_ARGUMENT", None),
        (lambda: client.explain("nothing", FLOWER), "NOT_FOUND", None),
    ):
        error = servers.failure(call)
        assert error.code == code
        assert reason in {None, error.reason}


def test_command_writes_a_page_without_scripts(
    topwork: Command, discs: str, tmp_path: Path
) -> None:
    """And an object with --json."""
    image, page = tmp_path / "flower<1>.png", tmp_path / "page.html"
    image.write_bytes(FLOWER)
    status, output, _ = topwork("explain", discs, image, "--out", page)
    assert status == 0
    assert "evidence for crimson: logit" in output
    assert "crimson-" in output
    written = page.read_text(encoding="utf-8")
    assert "<script" not in written
    assert "default-src 'none'" in written
    assert "flower&lt;1&gt;.png" in written
    assert written.count("data:image/png;base64,") == 1
    assert written.count("data:image/jpeg;base64,") == 6
    page.unlink()
    assert topwork("explain", discs, image, "--json")[0] == 0
    answer = json.loads(topwork("explain", discs, image, "--json")[1])
    assert len(answer["map"]["values"]) == pooling.CELLS
    assert answer["label"] == "crimson"
    assert len(answer["neighbours"]) == 5


def test_command_says_why_there_is_no_map(topwork: Command, tmp_path: Path) -> None:
    """On the terminal and on the page."""
    image, page = tmp_path / "blue.png", tmp_path / "page.html"
    image.write_bytes(picture("blue", 50))
    status, output, _ = topwork("explain", "colours", image, "--neighbours", 0, "--out", page)
    assert status == 0
    assert "no map of the evidence for blue: the backbone has no map: its embedding" in output
    assert "There is no heat map: the backbone has no map" in page.read_text(encoding="utf-8")


def test_command_names_what_is_wrong(topwork: Command, discs: str, tmp_path: Path) -> None:
    """An unknown label, and a page in a folder that does not exist."""
    image = tmp_path / "flower.png"
    image.write_bytes(FLOWER)
    status, _, errors = topwork("explain", discs, image, "--label", "tulip")
    assert status == 1
    assert "has no label 'tulip'" in errors
    status, _, errors = topwork("explain", discs, image, "--out", tmp_path / "no" / "page.html")
    assert status != 0
    assert "there is no folder" in errors
