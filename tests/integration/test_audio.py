"""Models of audio over the wire: four sounds, and then the fifth."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from support import servers, sounds, tiny
from support.http_calls import Answer, Parts, ask
from support.servers import Command, Running, failure
from support.sounds import LABELS, recordings

from topwork import Audio, Client
from topwork.inference import inference_service_pb2 as oip
from topwork.inference import inference_service_pb2_grpc as oip_grpc

OLD, NEW = LABELS[:4], LABELS[4]
CLASSIFY = "/v1/models/sounds:classify"


def audio(label: str, count: int, *, first: int = 0) -> list[Audio]:
    """Return recordings of a label: those numbered ``first`` and later."""
    return [Audio(file) for file in recordings(label, count, first=first)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Yield a server with a model ``sounds`` of four labels, and one of images."""
    made = tiny.repository(tmp_path_factory.mktemp("audio") / "repository")
    sounds.publish(
        made, "sounds", sounds.exemplars({label: recordings(label, 15) for label in OLD})
    )
    with servers.running(made.root, http_port="127.0.0.1:0") as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Client]:
    """Yield a client of the server."""
    with Client(server.address) as made:
        yield made


def best(client: Client, model: str, files: list[Audio]) -> list[str]:
    """Return the most probable label of each recording."""
    return [result.predictions[0].label for result in client.predict(model, files)]


def test_four_sounds_then_the_fifth(client: Client) -> None:
    """The fifth is learnt from 15 recordings, and the old ones are as good as before."""
    client.copy_model("sounds", "story")
    *_, last = client.watch(client.add_class("story", NEW, audio(NEW, 15)).name)
    assert last.result().images_used == 15
    assert list(last.result().revision.labels) == sorted(LABELS)
    right = [
        found == label
        for label in LABELS
        for found in best(client, "story", audio(label, 10, first=50))
    ]
    assert np.mean(right) >= 0.9


def test_paths_and_files_of_all_formats_are_audio(client: Client, tmp_path: Path) -> None:
    """A path with the suffix of a sound file needs no Audio around it."""
    sound = sounds.samples("bird", 60)
    for kind in ("wav", "flac", "ogg", "mp3"):
        path = tmp_path / f"1.{kind}"
        path.write_bytes(sounds.encoded(sound, kind=kind.upper()))
        (result,) = client.classify("sounds", [path]).results
        assert result.predictions[0].label == "bird"
    stream = client.classify_stream("sounds", [str(path), Audio.read(path)])
    assert [answer.result.predictions[0].label for answer in stream] == ["bird", "bird"]


def test_explanation_has_neighbours_to_play_and_no_map(client: Client) -> None:
    """The preview of an example is a WAV file."""
    found = client.explain("sounds", audio("bell", 1)[0])
    assert found.map is None
    assert "only images have one, not inputs of the kind audio" in found.map_unavailable
    nearest = found.neighbours[0]
    assert (nearest.label, round(nearest.similarity, 4)) == ("bell", 1.0)
    assert nearest.preview[:4] == b"RIFF"


def test_model_is_described_with_its_windows(client: Client) -> None:
    """GetModel has the kind, the spec and the limit."""
    found = client.model("sounds")
    assert found.input_kind == "audio"
    assert found.limits.max_audio_bytes == 16 * 2**20
    spec = found.serving_revision.backbone.audio
    assert (spec.rate_hz, spec.window_samples, spec.hop_samples, spec.max_seconds) == (
        8_000,
        4_000,
        2_000,
        10,
    )
    assert not found.serving_revision.backbone.HasField("preprocess")


def test_bad_recording_is_its_own_error(client: Client) -> None:
    """The others of the call are answered."""
    good = recordings("drum", 1)[0]
    files = [good, good[:-900], sounds.encoded(np.zeros(900)), sounds.encoded(np.ones(90_000)), b""]
    results = client.classify("sounds", [Audio(file) for file in files]).results
    reasons = [result.error.reason if result.error else None for result in results]
    assert reasons == [
        None,
        "AUDIO_UNREADABLE",
        "AUDIO_SILENT",
        "AUDIO_TOO_LARGE",
        "AUDIO_UNREADABLE",
    ]
    assert results[3].error is not None
    assert "lasts 11.2 s; the limit is 10 s" in str(results[3].error)


def test_open_inference_takes_bytes(server: Running, client: Client) -> None:
    """Metadata and Infer by raw and by typed contents; the answers are those of Classify."""
    files = recordings("chirp", 2, first=40)
    expected = [
        {prediction.label: prediction.probability for prediction in result.predictions}
        for result in client.classify("sounds", [*map(Audio, files)], top_k=4).results
    ]
    labels = client.model("sounds").serving_revision.labels
    with grpc.insecure_channel(server.address) as channel:
        stub = oip_grpc.GRPCInferenceServiceStub(channel)
        (tensor,) = stub.ModelMetadata(oip.ModelMetadataRequest(name="sounds")).inputs
        assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("audio", "BYTES", [-1, 1])
        config = stub.ModelConfig(oip.ModelConfigRequest(name="sounds")).config
        assert config.parameters["rate"].string_value == "8000"
        for raw in (True, False):
            request = oip.ModelInferRequest(model_name="sounds")
            given = request.inputs.add(name="audio", datatype="BYTES", shape=[2, 1])
            request.outputs.add(name="probabilities")
            if raw:
                parts = (len(file).to_bytes(4, "little") + file for file in files)
                request.raw_input_contents.append(b"".join(parts))
            else:
                given.contents.bytes_contents.extend(files)
            response = stub.ModelInfer(request)
            found = (
                np.frombuffer(response.raw_output_contents[0], "<f4")
                if raw
                else np.array(response.outputs[0].contents.fp32_contents)
            ).reshape(2, 4)
            for row, wanted in zip(found.tolist(), expected, strict=True):
                assert dict(zip(labels, row, strict=True)) == pytest.approx(wanted, abs=1e-6)
        given.name = "images"
        assert "INPUT_KIND" in failure(lambda: stub.ModelInfer(request)).reason


def label_of(answer: Answer) -> str:
    """Return the most probable label of the only result."""
    assert answer.code == 200, answer.body
    (result,) = answer.json["results"]
    return str(result["classification"]["predictions"][0]["label"])


def test_http_takes_json_forms_and_raw_audio(server: Running, client: Client) -> None:
    """Base64 in JSON; a file of a form by its suffix or type; a body of the type audio/*."""
    (file,) = recordings("drum", 1, first=33)
    encoded = base64.b64encode(file).decode()
    assert label_of(ask(server.http, CLASSIFY, tree={"inputs": [{"audio": encoded}]})) == "drum"
    assert label_of(ask(server.http, CLASSIFY, form=[("file", ("a.WAV", file))])) == "drum"
    raw = ask(server.http, CLASSIFY, body=file, headers={"content-type": "audio/wav"})
    assert label_of(raw) == "drum"
    explained = ask(server.http, "/v1/models/sounds:explain", form=[("image", ("a.wav", file))])
    assert explained.code == 200, explained.body
    client.copy_model("sounds", "by-http")
    files: Parts = [("f", (f"{n}.wav", each)) for n, each in enumerate(recordings(NEW, 12))]
    form: Parts = [("label", NEW), *files]
    added = ask(server.http, "/v1/models/by-http:addClass", form=form)
    assert added.code == 200, added.body
    *_, last = client.watch(added.json["name"])
    assert last.result().images_used == 12


def test_commands(server: Running, topwork: Command, tmp_path: Path) -> None:
    """Add-class, add-classes, classify, explain and describe from sound files."""

    def run(*arguments: object) -> str:
        status, output, errors = topwork(*arguments, address=server.address)
        assert status == 0, errors
        return output

    for label in LABELS:
        (tmp_path / "data" / label).mkdir(parents=True)
        for number, file in enumerate(recordings(label, 12, first=20)):
            (tmp_path / "data" / label / f"{number}.wav").write_bytes(file)
    with Client(server.address) as client:
        client.copy_model("sounds", "by-command")
    folder = tmp_path / "data"
    run("add-class", "--model", "by-command", "--label", NEW, folder / NEW)
    run("add-classes", "--model", "by-command", folder)
    lines = run("classify", "--model", "by-command", "--json", folder / NEW).splitlines()
    assert {json.loads(line)["predictions"][0]["label"] for line in lines} == {NEW}
    page = tmp_path / "page.html"
    run("explain", "by-command", folder / NEW / "0.wav", "--out", page)
    assert "<audio controls" in page.read_text()
    described = " ".join(run("describe", "by-command").split())
    assert "16 MiB per recording" in described
    assert "audio of up to 10 s, in windows of 0.5 s at 8000 Hz" in described
    as_json = json.loads(run("describe", "by-command", "--json"))
    assert (as_json["input_kind"], as_json["backbone"]["rate"]) == ("audio", 8000)
    evaluated = run("evaluate", "by-command", folder, "--json")
    assert json.loads(evaluated)["images"] == 60


def test_restarted_server_serves_audio(tmp_path: Path) -> None:
    """With encoder processes."""
    made = sounds.repository(tmp_path / "repository")
    with (
        servers.running(made.root, worker=False, cores=2) as started,
        Client(started.address) as client,
    ):
        assert best(client, "sounds", audio("bird", 2, first=20)) == ["bird", "bird"]
