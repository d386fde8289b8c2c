"""Server and worker on a host where the backbone gives other embeddings than expected."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import servers, tiny
from support.pictures import picture, pictures
from support.servers import Running

from topwork import Client
from topwork.bundle.store import Repository
from topwork.runtime.agreement import LEAST_AGREEMENT


@pytest.fixture(scope="module")
def saturating(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository whose model has a backbone that is off, with its twin."""
    return tiny.saturating_repository(tmp_path_factory.mktemp("saturating") / "repository")


@pytest.fixture(scope="module")
def server(saturating: Repository) -> Iterator[Running]:
    """Yield a server with encoder processes and a worker."""
    with servers.running(saturating.root, metrics_port=0, cores=2) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Client]:
    """Yield a client."""
    with Client(server.address) as connected:
        yield connected


def test_get_model_has_what_runs_and_the_agreement(saturating: Repository, client: Client) -> None:
    """The revision has its backbone as published; beside it is what this server runs."""
    info = saturating.backbone(saturating.manifest("colours", 1))
    for found in (client.model("colours"), *client.models()):
        assert found.serving_revision.backbone.digest == info.digest
        assert found.serving_revision.backbone.precision == "int8"
        loaded = found.loaded_backbone
        assert (loaded.digest, loaded.precision) == (info.twin, "fp32")
        assert 0 < loaded.agreement < LEAST_AGREEMENT


def test_metric_and_log_have_the_agreement(server: Running, client: Client) -> None:
    """Operators see the number in Prometheus, and one warning in the log."""
    url = f"http://127.0.0.1:{server.log_entry('metrics')['port']}/metrics"
    with urllib.request.urlopen(url, timeout=servers.TIMEOUT) as answer:  # the loopback
        families = list(text_string_to_metric_families(answer.read().decode()))
    (sample,) = [
        sample
        for family in families
        for sample in family.samples
        if sample.name == "topwork_backbone_agreement"
    ]
    agreement = client.model("colours").loaded_backbone.agreement
    assert sample.value == pytest.approx(agreement)
    assert sample.labels["precision"] == "fp32"
    line = server.log_entry("backbone is off")
    assert line["agreement"] == pytest.approx(agreement)
    assert server.log.count("backbone is off") == 1


def test_images_are_classified_with_the_twin(client: Client) -> None:
    """The head gets the embeddings that it was fitted on."""
    for label in ("amber", "blue", "green"):
        answer = client.classify("colours", [picture(label, number) for number in range(40, 44)])
        assert [result.predictions[0].label for result in answer.results] == [label] * 4


@pytest.mark.slow
def test_added_class_is_embedded_with_the_twin(
    saturating: Repository, server: Running, client: Client
) -> None:
    """The worker uses the twin, too, so that old and new exemplars are alike."""
    uploads = [(f"{number}.png", content) for number, content in enumerate(pictures("violet", 20))]
    for _ in client.watch(client.add_class("colours", "violet", uploads).name):
        pass
    made = saturating.manifest("colours", 2)
    assert made.backbone == saturating.manifest("colours", 1).backbone
    shards = {ref.label: saturating.shard(ref.digest) for ref in made.exemplars}
    assert shards["violet"].embeddings.max() > 32
    answer = client.classify("colours", [picture("violet", 50), picture("blue", 50)])
    assert [result.predictions[0].label for result in answer.results] == ["violet", "blue"]
    assert server.log.count("backbone is off") == 2  # the worker's


def test_threads_use_the_twin_too(tmp_path: Path) -> None:
    """With one core, threads of the server encode, with the same result."""
    repository = tiny.saturating_repository(tmp_path / "repository")
    with (
        servers.running(repository.root, worker=False, cores=1) as server,
        Client(server.address) as client,
    ):
        assert client.model("colours").loaded_backbone.precision == "fp32"
        answer = client.classify("colours", [picture("green", 41)])
        assert answer.results[0].predictions[0].label == "green"
