"""One server with a model of each kind of inputs: all calls, over gRPC and HTTP, and the commands.

The same tests for all kinds; ``support.kinds`` has their inputs.
"""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from support import http_calls, kinds, servers
from support.kinds import KINDS, TEXT, Sample
from support.servers import Command, Running, failure

import topwork as package
from topwork import Client, Embedding, ImageResult, LabelledImage, Text
from topwork.bundle.maintenance.check import check
from topwork.bundle.store import Repository
from topwork.cli.predict import predict
from topwork.inference import inference_service_pb2 as oip
from topwork.inference import inference_service_pb2_grpc as oip_grpc
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import review_service_pb2 as review_pb

ANY = change_pb.ChangeOptions(gate=change_pb.Gate(max_old_class_drop=1.0, min_new_class_recall=0.0))
FRESH = 100
"""Number of the first input that no model was fitted on."""

each_kind = pytest.mark.parametrize("sample", KINDS, ids=kinds.name_of)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Yield a server with a worker and HTTP, and a model of each kind."""
    made = kinds.repository(tmp_path_factory.mktemp("kinds") / "repository")
    with servers.running(made.root, http_port="127.0.0.1:0") as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Client]:
    """Yield a client of the server."""
    with Client(server.address) as made:
        yield made


@pytest.fixture
def copied(client: Client) -> Callable[[Sample], str]:
    """Return a function that copies a sample's model and returns the name of the copy."""

    def copy(sample: Sample) -> str:
        name = f"{sample.model}-{uuid.uuid4().hex[:8]}"
        client.copy_model(sample.model, name)
        return name

    return copy


def finished(client: Client, operation: Any) -> Any:
    """Return an operation once it has ended."""
    *_, last = client.watch(operation.name)
    return last


def best(results: Any) -> list[str]:
    """Return the most probable labels."""
    return [result.predictions[0].label for result in results]


def one_of_each(sample: Sample) -> list[Any]:
    """Return an input of each of the four labels, none of which was fitted on."""
    return [sample.inputs(label, 1, first=FRESH)[0] for label in sample.labels[:4]]


@each_kind
def test_model_says_its_kind(client: Client, sample: Sample) -> None:
    """GetModel has the kind, and the backbone its spec."""
    found = client.model(sample.model)
    assert found.input_kind == sample.name
    backbone = found.serving_revision.backbone
    assert backbone.name == sample.backbone
    given = {"image": "preprocess"}.get(sample.name, sample.name)
    assert given in {field.name for field, _ in backbone.ListFields()}


@each_kind
def test_answers_are_in_order_with_the_errors_between(client: Client, sample: Sample) -> None:
    """Classify, the stream and predict; an input that does not fit is its own error."""
    content, reason, text = sample.bad
    inputs = one_of_each(sample)
    inputs.insert(1, sample.given(content))
    wanted = [*sample.labels[:4]]
    found = client.classify(sample.model, inputs).results
    streamed = [answer.result for answer in client.classify_stream(sample.model, inputs)]
    for results in (found, streamed):
        error = results[1].error
        assert error is not None
        assert error.reason == reason
        assert text in str(error)
        assert best([results[0], *results[2:]]) == wanted
    assert [result.predictions for result in streamed] == [result.predictions for result in found]
    assert best(client.predict(sample.model, one_of_each(sample))) == wanted


@each_kind
def test_model_in_this_process_gives_the_same_answers(
    server: Running, client: Client, sample: Sample
) -> None:
    """``topwork.open`` of the served repository, with the same errors and neighbours."""
    opened = package.open(server.repository, sample.model)
    inputs = [*one_of_each(sample), sample.given(sample.bad[0])]
    here, there = opened.predict(inputs), client.classify(sample.model, inputs).results
    assert [*map(_numbers, here)] == [*map(_numbers, there)]
    assert [str(result.error) for result in here] == [str(result.error) for result in there]
    explained = opened.explain(inputs[0]), client.explain(sample.model, inputs[0])
    assert explained[0].neighbours == explained[1].neighbours


def _numbers(result: ImageResult) -> list[tuple[str, float]]:
    return [(label, round(probability, 5)) for label, probability in result.predictions]


@each_kind
def test_explanation_has_the_nearest_examples_with_previews(client: Client, sample: Sample) -> None:
    """The first is the input itself; only an image may have a map, others say why not."""
    content = sample.contents(sample.labels[2], 1, 3)[0]
    found = client.explain(sample.model, sample.given(content), neighbours=3)
    first = found.neighbours[0]
    assert (first.label, round(first.similarity, 4)) == (sample.labels[2], 1.0)
    assert first.digest == sample.digest(content)
    check_preview(sample, first.preview, content)
    if sample.name != "image":
        assert found.map is None
        assert found.map_unavailable
        assert "positions" in found.map_unavailable or sample.name in found.map_unavailable


@each_kind
def test_four_labels_then_the_fifth(
    client: Client, copied: Callable[[Sample], str], sample: Sample
) -> None:
    """The fifth is learnt; an input that does not fit is left out with the reason."""
    model = copied(sample)
    label = sample.labels[4]
    contents = sample.contents(label, 12, 0)
    named = [(f"n-{n}", sample.given(content)) for n, content in enumerate(contents)]
    bad, reason, _ = sample.bad
    accepted = client.add_class(
        model, label, [*named, ("bad", sample.given(bad)), ("again", named[0][1])], options=ANY
    )
    result = finished(client, accepted).result()
    assert result.images_used == 12
    skipped = {image.display_name: image.error for image in result.skipped_images}
    assert skipped.keys() == {"bad", "again"}
    assert reason in str(skipped["bad"])
    assert f"{sample.kind.same} as n-0" in skipped["again"].message
    unseen = sample.inputs(label, 4, first=FRESH)
    assert best(client.classify(model, unseen).results) == [label] * 4


@each_kind
def test_head_equals_that_of_one_fit(
    server: Running, client: Client, copied: Callable[[Sample], str], sample: Sample, tmp_path: Path
) -> None:
    """After AddClasses, AddExamples, MoveExamples and RemoveExamples over the wire."""
    model = copied(sample)
    first, second, *_ = sample.labels
    fifth = sample.labels[4]
    classes = {fifth: sample.inputs(fifth, 8), first: sample.inputs(first, 2, first=40)}
    finished(client, client.add_classes(model, classes, options=ANY)).result()
    finished(
        client, client.add_examples(model, second, sample.inputs(second, 3, first=50), options=ANY)
    ).result()
    after = sample.four()
    after[fifth] = sample.contents(fifth, 8, 0)
    after[first] += sample.contents(first, 2, 40)
    after[second] += sample.contents(second, 3, 50)
    moved, removed = after[first].pop(0), after[fifth].pop(0)
    finished(
        client, client.move_examples(model, [sample.digest(moved)], second, options=ANY)
    ).result()
    after[second].append(moved)
    last = client.remove_examples(model, [sample.digest(removed)], options=ANY)
    revision = finished(client, last).result().revision.revision
    stored = Repository(server.repository)
    found = stored.manifest(model, revision)
    fitted = Repository(tmp_path)
    expected = sample.publish(fitted, sample.model, sample.exemplars(after))
    assert (found.labels, found.data_digest) == (expected.labels, expected.data_digest)
    assert stored.head(found) == fitted.head(expected)


@each_kind
def test_same_input_in_other_bytes_is_one_example(
    client: Client, copied: Callable[[Sample], str], sample: Sample
) -> None:
    """The digest is that of what the backbone takes, not of the bytes."""
    twins = [sample.given(content) for content in sample.twins]
    label = sample.labels[0]
    result = finished(client, client.add_examples(copied(sample), label, twins, options=ANY))
    skipped = [image.error.message for image in result.result().skipped_images]
    assert (result.result().images_used, len(skipped)) in {(1, 1), (0, 2)}
    assert all(f"{sample.kind.same} as" in message for message in skipped)


@each_kind
def test_other_kind_is_refused_with_both_names(client: Client, sample: Sample) -> None:
    """All calls that take inputs; nothing is stored."""
    wrong = kinds.other(sample)
    inputs = wrong.inputs(wrong.labels[0], 6)
    model = sample.model
    for call in (
        lambda: client.classify(model, inputs),
        lambda: client.classify(model, [*one_of_each(sample), inputs[0]]),
        lambda: list(client.classify_stream(model, inputs)),
        lambda: client.explain(model, inputs[0]),
        lambda: client.add_class(model, "x", inputs),
        lambda: client.add_examples(model, sample.labels[0], inputs),
        lambda: client.add_classes(model, {"x": inputs}),
        lambda: client.evaluate(model, [LabelledImage(inputs[0], sample.labels[0])]),
    ):
        error = failure(call)
        if "images and" in error.message:  # a request has one of the two fields
            continue
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INPUT_KIND")
        names = f"{model!r} takes inputs of the kind {sample.name!r}, not {wrong.name!r}"
        assert names in error.message


@each_kind
def test_evaluation_set_judges_changes(
    client: Client, copied: Callable[[Sample], str], sample: Sample
) -> None:
    """A stored set is evaluated, with strangers, and again after the next change."""
    model, fifth = copied(sample), sample.labels[4]
    images = [
        LabelledImage(given, label if label != fifth else "")
        for label in sample.labels
        for given in sample.inputs(label, 6, first=FRESH)
    ]
    accepted = client.evaluate(model, images, name="held-out", max_drop=0.9)
    evaluation = finished(client, accepted).evaluation()
    assert (evaluation.metrics.images, evaluation.metrics.accuracy) == (
        24,
        pytest.approx(1.0, abs=0.15),
    )
    added = client.add_class(model, fifth, sample.inputs(fifth, 12), options=ANY)
    revision = finished(client, added).result().revision.revision
    assert client.get_evaluation(model, "held-out", revision).metrics.images


@each_kind
def test_doubtful_inputs_wait_for_a_label(
    client: Client, copied: Callable[[Sample], str], sample: Sample
) -> None:
    """They become examples with one call; embeddings are not kept."""
    model, fifth = copied(sample), sample.labels[4]
    everything = review_pb.ReviewPolicy(
        enabled=True, images_per_day=2000, max_margin=1.0, random_share=0.0
    )
    client.update_review_policy(model, everything)
    contents = sample.contents(fifth, 8, 0)
    results = client.classify(model, [sample.given(content) for content in contents]).results
    if sample.name == "embedding":
        assert {result.answer_id for result in results} == {""}
        assert client.review_policy(model).candidates == 0
        return
    servers.eventually(lambda: client.review_policy(model).candidates == 8)
    rows = {row.digest: row for row in client.list_candidates(model, previews=True)}
    assert rows.keys() == {*map(sample.digest, contents)}
    if sample is TEXT:
        assert {row.preview for row in rows.values()} == {*contents}
        whole = client.get_candidate(model, sample.digest(contents[0]))
        assert whole.image == contents[0]
    (operation,) = client.label_candidates(model, dict.fromkeys(rows, fifth), options=ANY)
    finished(client, operation).result()
    assert [*client.list_candidates(model)] == []
    assert best(client.classify(model, sample.inputs(fifth, 2, first=FRESH)).results) == [fifth] * 2


@each_kind
def test_examples_are_listed_with_previews(client: Client, sample: Sample) -> None:
    """What people see of an input: see ``check_preview``."""
    rows = [*client.list_examples(sample.model, f'label = "{sample.labels[0]}"', previews=True)]
    contents = {sample.digest(content): content for content in sample.four()[sample.labels[0]]}
    assert {row.digest for row in rows} == contents.keys()
    for row in rows:
        check_preview(sample, row.preview, contents[row.digest])


def check_preview(sample: Sample, preview: bytes, content: bytes) -> None:
    """Check that it is a thumbnail, the beginning of the text, a WAV file, or nothing."""
    begins = {"image": b"\xff\xd8", "audio": b"RIFF"}.get(sample.name)
    if begins is None:
        assert preview == {"text": content, "embedding": b""}[sample.name]
    else:
        assert preview.startswith(begins)


def tensor_of(sample: Sample, contents: list[bytes]) -> tuple[list[int], bytes, list[Any]]:
    """Return the shape, the raw bytes and the JSON data of inputs, as the protocol has them."""
    if sample.tensor[1] == "FP32":
        rows = np.stack([np.frombuffer(content, "<f4") for content in contents])
        return [*rows.shape], rows.tobytes(), rows.ravel().tolist()
    raw = b"".join(struct.pack("<I", len(content)) + content for content in contents)
    message = [sample.message(content) for content in contents]
    return [len(contents)], raw, [next(iter(each.values())) for each in message]


@each_kind
def test_open_inference_agrees_with_classify(
    server: Running, client: Client, sample: Sample
) -> None:
    """Metadata, raw and typed contents by gRPC, and JSON by HTTP."""
    contents = [sample.contents(label, 1, FRESH)[0] for label in sample.labels[:4]]
    labels = client.model(sample.model).serving_revision.labels
    results = client.classify(sample.model, [*map(sample.given, contents)], top_k=4).results
    expected = [[dict(result.predictions)[label] for label in labels] for result in results]
    name, datatype = sample.tensor
    shape, raw, data = tensor_of(sample, contents)
    with grpc.insecure_channel(server.address) as channel:
        stub = oip_grpc.GRPCInferenceServiceStub(channel)
        metadata = stub.ModelMetadata(oip.ModelMetadataRequest(name=sample.model))
        assert (metadata.inputs[0].name, metadata.inputs[0].datatype) == (name, datatype)
        config = stub.ModelConfig(oip.ModelConfigRequest(name=sample.model)).config
        assert config.input[0].name == name
        for is_raw in (True, False):
            request = oip.ModelInferRequest(model_name=sample.model)
            given = request.inputs.add(name=name, datatype=datatype, shape=shape)
            request.outputs.add(name="probabilities")
            if is_raw:
                request.raw_input_contents.append(raw)
            elif datatype == "FP32":
                given.contents.fp32_contents.extend(data)
            else:
                given.contents.bytes_contents.extend(contents)
            answer = stub.ModelInfer(request)
            found = (
                np.frombuffer(answer.raw_output_contents[0], "<f4")
                if is_raw
                else np.array(answer.outputs[0].contents.fp32_contents)
            )
            assert np.abs(found.reshape(4, 4) - expected).max() < 1e-6
        wrong = kinds.other(sample)
        shape, raw, _ = tensor_of(wrong, wrong.contents(wrong.labels[0], 1, 0))
        request = oip.ModelInferRequest(model_name=sample.model, raw_input_contents=[raw])
        request.inputs.add(name=wrong.tensor[0], datatype=wrong.tensor[1], shape=shape)
        assert failure(lambda: stub.ModelInfer(request)).reason == "INPUT_KIND"
    shape, raw, data = tensor_of(sample, contents)
    tensor = {"name": name, "datatype": datatype, "shape": shape, "data": data}
    path = f"/v2/models/{sample.model}/infer"
    outputs = [{"name": "probabilities"}]
    body = {"inputs": [tensor], "outputs": outputs}
    over_http = http_calls.ask(server.http, path, tree=body)
    assert over_http.code == 200, over_http.body
    found = np.array(over_http.json["outputs"][0]["data"]).reshape(4, 4)
    assert np.abs(found - expected).max() < 1e-6


@each_kind
def test_http_takes_inputs_as_json(server: Running, client: Client, sample: Sample) -> None:
    """Classify, Explain, and AddExamples by a line of JSON."""
    content = sample.contents(sample.labels[1], 1, FRESH)[0]
    message = sample.message(content)
    path = f"/v1/models/{sample.model}"
    answer = http_calls.ask(server.http, f"{path}:classify", tree={"inputs": [message]})
    assert answer.code == 200, answer.body
    label = answer.json["results"][0]["classification"]["predictions"][0]["label"]
    assert label == sample.labels[1]
    answer = http_calls.ask(
        server.http, f"{path}:explain", tree={"input": message, "neighbours": 2}
    )
    assert len(answer.json["neighbours"]) == 2
    body = {
        "config": {"label": label, "options": {"validateOnly": True}},
        "images": [{"input": message, "displayName": "one"}],
    }
    answer = http_calls.ask(server.http, f"{path}:addExamples", tree=body)
    assert answer.code == 200, answer.body
    *_, last = client.watch(answer.json["name"])
    assert last.result().images_used == 1
    wrong = kinds.other(sample)
    body = {"inputs": [wrong.message(wrong.contents(wrong.labels[0], 1, 0)[0])]}
    error = http_calls.ask(server.http, f"{path}:classify", tree=body)
    assert error.error == (400, "INVALID_ARGUMENT", "INPUT_KIND")


@each_kind
def test_model_is_born_with_a_backbone_of_its_kind(client: Client, sample: Sample) -> None:
    """CreateModel without labels, then two labels in one change."""
    name = f"born-{uuid.uuid4().hex[:8]}"
    created = client.create_model(name, backbone=sample.backbone)
    assert created.input_kind == sample.name
    classes = {label: sample.inputs(label, 8) for label in sample.labels[:2]}
    finished(client, client.add_classes(name, classes, options=ANY)).result()
    unseen = [sample.inputs(label, 1, first=FRESH)[0] for label in sample.labels[:2]]
    assert best(client.classify(name, unseen).results) == [*sample.labels[:2]]


@each_kind
def test_commands(
    server: Running,
    topwork: Command,
    copied: Callable[[Sample], str],
    sample: Sample,
    tmp_path: Path,
) -> None:
    """All commands that read files, with the files of the kind."""
    model, fifth = copied(sample), sample.labels[4]

    def run(*arguments: object, status: int = 0) -> str:
        found, output, errors = topwork(*arguments, address=server.address)
        assert found == status, errors
        return output if status == 0 else errors

    files = sample.write(tmp_path / "fifth", sample.contents(fifth, 12, 0))
    fresh = sample.write(tmp_path / "fresh", sample.contents(fifth, 3, FRESH))
    for label in sample.labels[:4]:
        sample.write(tmp_path / "data" / label, sample.contents(label, 5, FRESH))
    run("add-class", "--model", model, "--label", fifth, *files)
    more = sample.write(tmp_path / "more", sample.contents(fifth, 2, 60))
    run("add-examples", "--model", model, "--label", fifth, *more)
    rows = run("classify", "--model", model, "--json", *fresh).splitlines()
    assert [json.loads(row)["predictions"][0]["label"] for row in rows] == [fifth] * 3
    run("add-classes", "--model", model, tmp_path / "data")
    evaluated = json.loads(run("evaluate", model, tmp_path / "data", "--json"))
    assert evaluated["images"] == 20
    assert fifth in run("explain", model, fresh[0])
    arguments = [sample.model, "--repository", server.repository, "--json", *fresh]
    local = CliRunner().invoke(predict, [*map(str, arguments)])
    assert (local.exit_code, len(local.output.splitlines())) == (0, 3), local.output
    html = tmp_path / "page.html"
    run("evaluate", sample.model, tmp_path / "data", "--html", html)
    assert sample.model in html.read_text()
    listed = run("examples list", sample.model, "--previews", "--limit", 100)
    if sample is TEXT:
        shown = " ".join(listed.split())
        assert sample.contents(sample.labels[0], 1, 0)[0].decode() in shown
    wrong = kinds.other(sample)
    others = wrong.write(tmp_path / "others", wrong.contents(wrong.labels[0], 1, 0))
    assert "a model takes inputs of one kind" in run(
        "classify", "--model", model, *fresh, *others, status=1
    )
    assert "takes inputs of the kind" in run("classify", "--model", model, *others, status=1)


def test_text_on_the_command_line(server: Running, topwork: Command, tmp_path: Path) -> None:
    """--text of classify, predict and explain; the page of an explanation has the text."""
    text = TEXT.contents("music", 1, FRESH)[0].decode()
    status, output, errors = topwork(
        "classify", "--model", "topics", "--text", text, "--text", "xyzzy", address=server.address
    )
    first, second = output.splitlines()
    assert status == 1, errors
    assert first.startswith("--text 1: music")
    assert "--text 2: error: the text has only unknown tokens: 'xyzzy'" in second
    page = tmp_path / "page.html"
    hostile = f"{text} <script>alert(1)</script>"
    status, output, errors = topwork(
        "explain", "topics", "--text", hostile, "--out", page, address=server.address
    )
    assert status == 0, errors
    assert "music" in output
    written = page.read_text()
    assert "&lt;script&gt;alert(1)" in written
    assert "<script" not in written
    assert written.count('<blockquote class="excerpt"') == 6


def test_files_of_all_kinds_are_sound(server: Running) -> None:
    """Fsck finds nothing wrong."""
    problems = [
        problem.text
        for problem in check(Repository(server.repository))
        if problem.severity == "error"
    ]
    assert problems == []


def test_kinds_are_types_of_the_client() -> None:
    """Sizes are in bytes; a text is sent in UTF-8."""
    assert len(Text("Grüße")) == 7
    assert len(Embedding(bytes(12))) == 12
