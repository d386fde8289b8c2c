"""Filters of ListOperations."""

from __future__ import annotations

import pytest

from topwork.changes.queue import OperationFilter
from topwork.errors import InvalidInput
from topwork.rpc.filters import parse, parse_examples
from topwork.serving.examples import ExampleFilter, Pattern


@pytest.mark.parametrize(
    ("text", "attributes", "done"),
    [
        ("", {}, None),
        ("done=true", {}, True),
        (' model = "models/flowers" ', {"model": "flowers"}, None),
        (
            'kind = add_class AND label="a b" AND done = false AND validate_only = true',
            {"kind": "add_class", "label": "a b", "validate_only": True},
            False,
        ),
        (r'label = "say \"AND\" \\"', {"label": 'say "AND" \\'}, None),
        ("label = Löwenzahn", {"label": "Löwenzahn"}, None),
        ("label = cafe\u0301", {"label": "caf\u00e9"}, None),
    ],
)
def test_filter_has_terms_joined_by_and(
    text: str, attributes: dict[str, str | bool], done: bool | None
) -> None:
    """Terms of fields and values, joined by AND, bare or quoted."""
    assert parse(text) == OperationFilter(attributes=attributes, done=done)


@pytest.mark.parametrize(
    "text",
    [
        "flowers",
        "colour = red",
        "label = a label = b",
        "label = a AND label = b",
        "label = a OR kind = retrain",
        "AND done = true",
        "done = true AND",
        "done = yes",
        "kind = classify",
        "model = flowers",
        'label = "open',
        "label != a",
        " ",
        "label = " + "a" * 993,
    ],
)
def test_invalid_filter_is_refused(text: str) -> None:
    """Any other text is InvalidInput, and the error names the field."""
    with pytest.raises(InvalidInput) as caught:
        parse(text)
    assert caught.value.field == "filter"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", ExampleFilter()),
        ("label = tulips AND suspect = true", ExampleFilter(label="tulips", suspect=True)),
        ('operation = "operations/x"', ExampleFilter(operation="x")),
        ('operation = ""', ExampleFilter(operation="")),
        ('display_name = "a b*"', ExampleFilter(name=Pattern(text="a b", prefix=True))),
        ("display_name = a.jpg", ExampleFilter(name=Pattern(text="a.jpg", prefix=False))),
        ("digest = 0AF*", ExampleFilter(digest=Pattern(text="0af", prefix=True))),
    ],
)
def test_filters_of_examples(text: str, wanted: ExampleFilter) -> None:
    """A value that ends with * is a prefix; digests are in lower case."""
    assert parse_examples(text) == wanted


@pytest.mark.parametrize(
    "text", ["model = x", "suspect = maybe", "operation = x", "digest = xyz*", "label"]
)
def test_invalid_filters_of_examples_are_refused(text: str) -> None:
    """The error names the filter."""
    with pytest.raises(InvalidInput) as caught:
        parse_examples(text)
    assert caught.value.field == "filter"
