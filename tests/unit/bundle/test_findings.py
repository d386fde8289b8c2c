"""What is said of images that were not used."""

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
def test_the_reason_decides_the_kind(reason: str, kind: str, severity: str) -> None:
    """A repeated image is no error; one that cannot be used is, and is named with the reason."""
    found = skipped_image("a.jpg", "roses", reason=reason, message="because")
    assert (found.kind, found.severity) == (kind, severity)
    assert found.message == "a.jpg was left out: because"
    assert (found.images, found.labels) == (("a.jpg",), ("roses",))
