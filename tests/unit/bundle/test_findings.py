"""Findings for images that training skips."""

from __future__ import annotations

import pytest

from topwork.bundle.findings import skipped_image


@pytest.mark.parametrize(
    ("reason", "kind", "severity"),
    [
        ("IMAGE_UNREADABLE", "unreadable", "error"),
        ("IMAGE_TOO_LARGE", "too_large", "error"),
        ("DUPLICATE", "exact_duplicate", "note"),
    ],
)
def test_skipped_image_has_kind_and_severity(reason: str, kind: str, severity: str) -> None:
    """A duplicate is a note, an unusable image an error; the message names it."""
    found = skipped_image("a.jpg", "roses", reason=reason, message="because")
    assert (found.kind, found.severity) == (kind, severity)
    assert found.message == "a.jpg was left out: because"
    assert (found.images, found.labels) == (("a.jpg",), ("roses",))
