"""Conversion of the messages that request changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from topwork.bundle.comparison import Gate
from topwork.changes.requests import ChangeRequest, UploadedImage, UploadItem
from topwork.errors import InvalidInput
from topwork.limits import ServerLimits
from topwork.rpc.convert.requests import from_change, from_gate, from_upload
from topwork.v1 import change_pb2 as change_pb

LIMITS = ServerLimits(max_images_per_upload=4, max_display_name_length=7)
CONFIG = change_pb.AddClassConfig(model="models/colours", label="violet", request_id="an id")


def upload_items(*messages: change_pb.AddClassRequest) -> list[UploadItem]:
    """Return the upload_items that upload messages become."""

    async def sent() -> AsyncIterator[change_pb.AddClassRequest]:
        for message in messages:
            yield message

    async def collected() -> list[UploadItem]:
        return [item async for item in from_upload("add_class", sent(), LIMITS)]

    return asyncio.run(collected())


def images(*lengths: int, name: str = "") -> list[change_pb.TrainingImage]:
    """Return images of these lengths."""
    return [change_pb.TrainingImage(content=bytes(length), display_name=name) for length in lengths]


def test_request_has_every_field_of_the_message() -> None:
    """Every field of a message is in its request."""
    options = change_pb.ChangeOptions(expected_revision=3, validate_only=True)
    options.gate.max_conflicts = 2
    message = change_pb.RenameClassRequest(
        model="models/colours", label="blue", new_label="navy", request_id="id", options=options
    )
    assert from_change("rename_class", message, label="blue", new_label="navy") == ChangeRequest(
        kind="rename_class",
        model="colours",
        request_id="id",
        label="blue",
        new_label="navy",
        gate=Gate(max_conflicts=2),
        expected_revision=3,
        validate_only=True,
    )


def test_error_names_the_path_of_the_field() -> None:
    """An error about a field of a nested message names its path."""
    message = change_pb.AddClassConfig(model="models/colours")
    message.options.expected_revision = -1
    with pytest.raises(InvalidInput) as caught:
        from_change("add_class", message, path="config.")
    assert caught.value.field == "config.options.expected_revision"


def test_upload_becomes_a_request_and_its_images() -> None:
    """The config comes first; then the images of each message, which may be none."""
    first = change_pb.AddClassRequest(config=CONFIG, images=images(1, name="a.jpg"))
    request = ChangeRequest(
        kind="add_class", model="colours", label="violet", request_id="an id", path="config."
    )
    assert upload_items(first, change_pb.AddClassRequest()) == [
        request,
        [UploadedImage(name="a.jpg", content=bytes(1))],
        [],
    ]


@pytest.mark.parametrize("name", ["rose-17", "rose-17.jpg", "rose-17" * 1000])
def test_long_display_name_is_cut(name: str) -> None:
    """The beginning of a long name is stored."""
    portion = [UploadedImage(name="rose-17", content=bytes(5))]
    assert upload_items(change_pb.AddClassRequest(images=images(5, name=name))) == [portion]


def test_message_with_too_many_images_is_cut() -> None:
    """One image more than an upload may have is enough for a refusal."""
    (portion,) = upload_items(change_pb.AddClassRequest(images=images(*[0] * 1000)))
    assert isinstance(portion, list)
    assert len(portion) == 5


def test_unset_fields_of_a_gate_have_defaults() -> None:
    """Unset fields have the defaults of Gate; set ones are used, 0 too."""
    assert from_gate(change_pb.Gate(), path="gate") == Gate()
    given = change_pb.Gate(max_old_class_drop=0, min_new_class_recall=0.5, max_conflicts=0)
    assert from_gate(given, path="gate") == Gate(
        max_old_class_drop=0, min_new_class_recall=0.5, max_conflicts=0
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_old_class_drop", -0.1),
        ("max_old_class_drop", float("nan")),
        ("min_new_class_recall", 1.1),
        ("max_conflicts", -1),
    ],
)
def test_gate_out_of_range_is_refused(name: str, value: float) -> None:
    """A share outside 0 to 1 and a negative number are InvalidInput with the field."""
    gate = change_pb.Gate()
    setattr(gate, name, value)
    with pytest.raises(InvalidInput, match=name) as caught:
        from_gate(gate, path="options.gate")
    assert caught.value.field == f"options.gate.{name}"
