"""Requests of the gateway: rules, path templates, JSON, text fields and forms."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest
from google.longrunning import operations_pb2
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from openapi_spec_validator import validate
from support.http_calls import FORM, encode

import topwork.gateway
from topwork.errors import InvalidInput
from topwork.gateway import json_mapping
from topwork.gateway.errors import HttpError
from topwork.gateway.fields import Fields
from topwork.gateway.methods import descriptor, methods, rule_of, services
from topwork.gateway.multipart import Part, parts
from topwork.gateway.templates import parse
from topwork.v1 import change_pb2, classifier_service_pb2, model_service_pb2
from topwork.wire import status as statuses

ROOT = topwork.gateway.__path__[0]


def test_every_rpc_has_a_rule_of_its_own() -> None:
    """Each rpc can be called over HTTP, by a verb and path that no other rpc has."""
    without = [m.full_name for s in services() for m in s.methods if rule_of(m) is None]
    assert without == [], "add option (google.api.http) to these rpcs"
    places = [(method.verb, method.template.path) for method in methods(services())]
    assert len(set(places)) == len(places)


def test_every_field_of_a_path_exists() -> None:
    """The variables of each path are text fields of the request."""
    for method in methods(services()):
        fields = Fields(descriptor(method))
        for variable in method.template.variables:
            fields.add(variable.field, variable.value)


def test_description_is_valid_and_has_every_method() -> None:
    """openapi.json is OpenAPI 3.1, and has the verb of each method."""
    with open(f"{ROOT}/openapi.json", encoding="utf-8") as file:  # noqa: PTH123  # a test
        described = json.load(file)
    validate(described)
    found = {(verb.upper(), path) for path, verbs in described["paths"].items() for verb in verbs}
    assert found == {(method.verb, method.template.path) for method in methods(services())}


def test_template_names_parameters_after_collections() -> None:
    """``*`` is named after the segment before it, and the field gets the whole name."""
    template = parse("/v1/{name=models/*/examples/*}:show")
    assert template.path == "/v1/models/{model}/examples/{example}:show"
    given_parameters = {"model": "a{b}", "example": "{model}"}
    assert template.fields(given_parameters) == {"name": "models/a{b}/examples/{model}"}
    assert parse("/v1/{name=operations}").fields({}) == {"name": "operations"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "line 1, column 1"),
        (b"[1]", "must be an object"),
        (b'{"a": 1, "a": 2}', "'a' twice"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "4300"),
    ],
)
def test_bad_json_is_refused(body: bytes, message: str) -> None:
    """Each error of JSON names its reason or position."""
    with pytest.raises(InvalidInput, match="the body is not valid JSON") as caught:
        json_mapping.parse(body)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "tree",
    [
        {"unknown": 1},
        {"topK": "many"},
        {"topK": 2**31},
        {"images": "text"},
        {"images": [{}]},
        {"model": "\ud800"},
        {"model": {}},
        {"revision": 1.5},
    ],
)
def test_json_that_does_not_fit_is_refused(tree: dict[str, object]) -> None:
    """Unknown fields and wrong types are errors of the caller."""
    with pytest.raises(InvalidInput, match=r"does not fit topwork\.v1\.ClassifyRequest"):
        json_mapping.merge(tree, classifier_service_pb2.ClassifyRequest())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["config", "model", "images", "options", "gate", "x", "content"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(tree=st.dictionaries(st.sampled_from(["config", "images", "[a]"]), json_values))
def test_any_json_fits_or_is_invalid_input(tree: dict[str, object]) -> None:
    """Whatever the JSON is, the only error is InvalidInput."""
    with contextlib.suppress(InvalidInput):
        json_mapping.merge(tree, change_pb2.AddClassRequest())


def test_json_has_defaults_and_survives_unknown_details() -> None:
    """Zeros and empty lists are written; an Any of a known type is JSON."""
    answer = json.loads(json_mapping.to_json(model_service_pb2.ListModelsResponse()))
    assert answer == {"models": [], "nextPageToken": ""}
    operation = operations_pb2.Operation(name="operations/1")
    operation.metadata.Pack(change_pb2.ChangeMetadata(model="models/m"))
    operation.error.CopyFrom(statuses.internal())
    tree = json.loads(json_mapping.to_json(operation))
    assert tree["metadata"]["model"] == "models/m"
    assert json_format.ParseDict(tree, operations_pb2.Operation()) == operation


def test_fields_are_paths_in_both_spellings() -> None:
    """Names may be nested, camelCase or as in the proto, and start below the base."""
    fields = Fields(change_pb2.AddClassRequest.DESCRIPTOR, "config")
    fields.add("label", "tulips")
    fields.add("config.request_id", "1")
    fields.add("options.validateOnly", "true")
    fields.add("options.gate.max_conflicts", "3")
    message = change_pb2.AddClassRequest()
    json_mapping.merge(fields.tree, message)
    assert (message.config.label, message.config.request_id) == ("tulips", "1")
    assert message.config.options.validate_only
    assert message.config.options.gate.max_conflicts == 3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([("colour", "red")], "there is no field 'colour'; there are model, label"),
        ([("options", "x")], "there is no field"),
        ([("images.content", "x")], "there is no field"),
        ([("label", "a"), ("config.label", "b")], "given twice"),
        ([("options.validate_only", "yes")], "true or false"),
        ([("label.x", "a")], "there is no field"),
    ],
)
def test_bad_fields_are_refused(names: list[tuple[str, str]], message: str) -> None:
    """Unknown names, second values and wrong values are errors."""
    fields = Fields(change_pb2.AddClassRequest.DESCRIPTOR, "config")
    *before, (name, value) = names
    for other in before:
        fields.add(*other)
    with pytest.raises(InvalidInput, match=message):
        fields.add(name, value)


def test_repeated_field_takes_several_values() -> None:
    """A name may come again if the field is repeated."""
    fields = Fields(change_pb2.RemoveExamplesRequest.DESCRIPTOR)
    fields.add("digests", "a")
    fields.add("digests", "b")
    assert fields.tree == {"digests": ["a", "b"]}


def read(body: bytes, size: int, *, most: int = 1000, kind: str = FORM) -> list[Part]:
    """Return the parts of a body that arrives in chunks of ``size``."""

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), size):
            yield body[at : at + size]

    async def run() -> list[Part]:
        return [part async for part in parts(chunks(), kind, most_bytes=most)]

    return asyncio.run(run())


@given(
    contents=st.lists(st.binary(max_size=60), max_size=4), size=st.integers(1, 90), text=st.text()
)
def test_form_is_the_same_in_any_chunks(contents: list[bytes], size: int, text: str) -> None:
    """Parts have their content whatever the chunks are."""
    text = text.encode(errors="ignore").decode()
    files: list[tuple[str, str | tuple[str, bytes]]] = [
        ("images", (f"{n}.png", content)) for n, content in enumerate(contents)
    ]
    found = read(encode([("label", text), *files]), size, most=100)
    assert [part.content for part in found[1:]] == contents
    assert [part.filename for part in found[1:]] == [f"{n}.png" for n in range(len(contents))]
    assert (found[0].text(), found[0].is_file) == (text, False)


def test_names_are_read_as_browsers_write_them() -> None:
    """Browsers and curl write quotes and line ends in names as %22, %0D and %0A, and no others."""
    (part,) = read(encode([("a %22b%22", ("%0D%0A%22%41.png", b"x"))]), 100)
    assert (part.name, part.filename) == ('a "b"', '\r\n"%41.png')


@pytest.mark.parametrize("cut", range(3, 120, 7))
def test_truncated_form_is_refused(cut: int) -> None:
    """A body that ends early is an error, not a shorter form."""
    body = encode([("label", "a"), ("images", ("a.png", b"x" * 60))])
    with pytest.raises(InvalidInput, match="not valid multipart/form-data"):
        read(body[:-cut], 50)


@pytest.mark.parametrize("size", [1, 7, 5000])
def test_part_that_is_too_long_is_refused(size: int) -> None:
    """The limit is looked at while the part arrives."""
    with pytest.raises(HttpError, match=r"part 'a\.png' has more than 1000 bytes") as caught:
        read(encode([("images", ("a.png", bytes(2000)))]), size)
    assert caught.value.code == 413


@pytest.mark.parametrize(
    "body",
    [
        b"--a-boundary\r\nContent-Type: image/png\r\n\r\nx\r\n--a-boundary--\r\n",
        b'--a-boundary\r\nContent-Disposition: form-data; filename="x"\r\n\r\nx\r\n--a-boundary--',
        b"--a-boundary\r\n" + b"x: y\r\n" * 500 + b"\r\n\r\n--a-boundary--\r\n",
        b"--a-boundary\r\nx: " + b"y" * 100_000,
        b"junk",
    ],
)
def test_malformed_form_is_refused(body: bytes) -> None:
    """Parts without a name, endless headers and junk are errors of the caller."""
    with pytest.raises(InvalidInput, match="not valid multipart/form-data"):
        read(body, 4096)


def test_form_without_boundary_is_refused() -> None:
    """A Content-Type that was written by hand lacks the boundary."""
    with pytest.raises(InvalidInput, match="no boundary"):
        read(b"", 1, kind="multipart/form-data")
