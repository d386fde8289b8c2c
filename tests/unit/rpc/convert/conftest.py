"""A published revision for all tests of this folder."""

from __future__ import annotations

import pytest
from support import tiny

from topwork.rpc.convert.revisions import (
    PublishedRevision,
)


@pytest.fixture(scope="package")
def published(tmp_path_factory: pytest.TempPathFactory) -> PublishedRevision:
    """Return a real revision."""
    repository = tiny.repository(tmp_path_factory.mktemp("convert") / "repository")
    manifest = repository.manifest("colours", 1)
    return PublishedRevision(manifest, repository.metrics(manifest), repository.backbone(manifest))
