"""Filters of ListOperations, ListExamples and ListCandidates: a subset of AIP-160."""

from __future__ import annotations

import re
import unicodedata
from typing import get_args

from topwork.bundle.candidates import REASONS
from topwork.changes.jobs import ChangeKind
from topwork.changes.queue import OperationFilter
from topwork.errors import InvalidInput
from topwork.review.candidates import CandidateFilter
from topwork.rpc.convert.fields import model_id, resource_id
from topwork.serving.examples import ExampleFilter, Pattern

_TERM = re.compile(r'\s*([a-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s"]+))\s*')
_AND = re.compile(r"AND\s")
_DIGEST = re.compile(r"[0-9a-f]{0,63}\*?|[0-9a-f]{64}")
_ESCAPED = re.compile(r"\\(.)")

LONGEST = 1000
"""Most characters of a filter."""

FIELDS = ("model", "label", "kind", "done", "validate_only")
CANDIDATE_FIELDS = ("reason", "group", "label", "suggested_label", "claimed")
EXAMPLE_FIELDS = ("label", "suspect", "operation", "display_name", "digest")


def parse_examples(text: str) -> ExampleFilter:
    """Return the filter of a text such as ``label = tulips AND display_name = "IMG_*"``.

    As ``parse``, with ``EXAMPLE_FIELDS``. Raises InvalidInput.
    """
    given = _terms(text, EXAMPLE_FIELDS)
    operation = given.get("operation")
    digest = given.get("digest", "").lower()
    if not _DIGEST.fullmatch(digest):
        raise _refused(text, "a digest has up to 64 hexadecimal digits, or fewer and *")
    return ExampleFilter(
        label=unicodedata.normalize("NFC", given["label"]) if "label" in given else None,
        suspect=_boolean(text, given["suspect"]) if "suspect" in given else None,
        operation=resource_id(operation, collection="operations", field="filter")
        if operation
        else operation,
        name=_pattern(given["display_name"]) if "display_name" in given else None,
        digest=_pattern(digest) if "digest" in given else None,
    )


def parse_candidates(text: str) -> CandidateFilter:
    """Return the filter of a text such as ``reason = unknown AND claimed = false``.

    As ``parse``, with ``CANDIDATE_FIELDS``. Raises InvalidInput.
    """
    given = _terms(text, CANDIDATE_FIELDS)
    reason = next((reason for reason in REASONS if reason == given.get("reason")), None)
    if "reason" in given and reason is None:
        raise _refused(text, f"reason must be one of {', '.join(REASONS)}")
    labels = {
        name: unicodedata.normalize("NFC", given[name])
        for name in ("label", "suggested_label")
        if name in given
    }
    return CandidateFilter(
        reason=reason,
        group=given.get("group"),
        label=labels.get("label"),
        suggested_label=labels.get("suggested_label"),
        claimed=_boolean(text, given["claimed"]) if "claimed" in given else None,
    )


def parse(text: str) -> OperationFilter:
    """Return the filter of a text such as ``model = "models/flowers" AND done = false``.

    It has terms ``field = value`` of different ``FIELDS``, joined by AND, with quoted or bare
    values. Raises InvalidInput.
    """
    return _wanted(text, _terms(text, FIELDS))


def _terms(text: str, fields: tuple[str, ...]) -> dict[str, str]:
    """Return the values of a filter's terms by field, each of ``fields``. Raises InvalidInput."""
    if len(text) > LONGEST:
        raise _refused(text, f"it has {len(text)} characters; the limit is {LONGEST}")
    given: dict[str, str] = {}
    position = 0
    while text and position < len(text):
        if given:
            joined = _AND.match(text, position)
            if joined is None:
                raise _refused(text, f"AND is missing before {text[position : position + 20]!r}")
            position = joined.end()
        term = _TERM.match(text, position)
        if term is None:
            raise _refused(text, f'{text[position : position + 20]!r} is not like model = "value"')
        name, quoted, bare = term.groups()
        if name not in fields or name in given:
            raise _refused(text, f"{name!r} must be one of {', '.join(fields)}, each once")
        given[name] = bare if quoted is None else _ESCAPED.sub(r"\1", quoted)
        position = term.end()
    return given


def _wanted(text: str, given: dict[str, str]) -> OperationFilter:
    attributes: dict[str, str | bool] = {}
    if "model" in given:
        attributes["model"] = model_id(given["model"], field="filter")
    if "label" in given:
        attributes["label"] = unicodedata.normalize("NFC", given["label"])  # labels are stored so
    if "kind" in given:
        if given["kind"] not in get_args(ChangeKind):
            raise _refused(text, f"kind must be one of {', '.join(get_args(ChangeKind))}")
        attributes["kind"] = given["kind"]
    if "validate_only" in given:
        attributes["validate_only"] = _boolean(text, given["validate_only"])
    return OperationFilter(
        attributes=attributes, done=_boolean(text, given["done"]) if "done" in given else None
    )


def _pattern(given: str) -> Pattern:
    return Pattern(text=given.removesuffix("*"), prefix=given.endswith("*"))


def _boolean(text: str, given: str) -> bool:
    if given not in {"true", "false"}:
        raise _refused(text, f"{given[:20]!r} must be true or false")
    return given == "true"


def _refused(text: str, why: str) -> InvalidInput:
    return InvalidInput(f"filter {text[:80]!r} cannot be used: {why}", field="filter")
