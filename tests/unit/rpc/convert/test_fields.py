"""Conversion of resource names and durations."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration

from topwork.errors import InvalidInput
from topwork.rpc.convert import fields


@pytest.mark.parametrize("name", ["flowers", "models", "models/", "/flowers", "models/a/b",
                                  "model/flowers", "operations/flowers", ""])  # fmt: skip
def test_resource_name_of_another_form_is_refused(name: str) -> None:
    """Anything but ``models/{model}`` is InvalidInput, and the error names the field."""
    with pytest.raises(InvalidInput) as caught:
        fields.resource_id(name, collection="models", field="config.model")
    assert (caught.value.field, caught.value.reason) == ("config.model", "RESOURCE_NAME_INVALID")


def test_resource_name_has_its_id() -> None:
    """The id is the part after the collection."""
    assert fields.resource_id("models/flowers", collection="models", field="model") == "flowers"


@pytest.mark.parametrize(
    "name",
    [
        *("", "models", "models/", "/x", "x", "operations/x", "models/x/y", "models/../x"),
        *("models/x\0", "models/x\ny", "models/\u202ex", "models/" + "x" * 194, "x" * 10**7),
    ],
)
def test_resource_name_with_bad_id_is_refused(name: str) -> None:
    """An invisible or long id is InvalidInput; the error names the field and is short."""
    with pytest.raises(InvalidInput, match="must be a resource name") as caught:
        fields.resource_id(name, collection="models", field="name")
    assert (caught.value.field, caught.value.reason) == ("name", "RESOURCE_NAME_INVALID")
    assert len(str(caught.value)) < 600
    assert fields.resource_id("models/" + "x" * 193, collection="models", field="name")


def test_negative_duration_is_refused() -> None:
    """A negative duration is InvalidInput, and the error names the field."""
    assert fields.seconds(Duration(seconds=3, nanos=5 * 10**8), field="timeout") == 3.5
    with pytest.raises(InvalidInput, match=r"timeout is -1\.5 s") as caught:
        fields.seconds(Duration(seconds=-1, nanos=-5 * 10**8), field="timeout")
    assert caught.value.field == "timeout"
