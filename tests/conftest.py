"""Fixtures shared by tests, and their hypothesis profile."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from topwork.runtime import process

process.configure()  # before ONNX Runtime is imported, which else reports to its makers
# The tests take all cores, beside which idle workers would starve.
os.environ["TOPWORK_SERVE_WORKER_PRIORITY"] = os.environ["TOPWORK_WORKER_WORKER_PRIORITY"] = (
    "normal"
)

from support import tiny  # noqa: E402  # see above

from topwork.bundle.store import Repository  # noqa: E402  # see above

PHOTOS = Path(__file__).parents[2] / "shared" / "data"

hypothesis.settings.register_profile("seeded", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("seeded")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage while modules and tests are made, nor among them later: all stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run short files last, which keep all processes busy, and right before them integration tests.

    The servers that these share have idle workers until the end.
    """
    last = (
        "tests/unit/trainer/",
        "tests/integration/",
        "tests/unit/serving/encoders/",
        "tests/unit/",
    )

    def place(item: pytest.Item) -> int:
        return next((at for at, start in enumerate(last) if item.nodeid.startswith(start)), -1)

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def _no_cache_at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Move the cache of commands from the home directory to a temporary one.

    All processes of one test run share it.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        yield


@pytest.fixture
def colours(tmp_path: Path) -> Repository:
    """Return a repository with a small model called ``colours``."""
    return tiny.repository(tmp_path / "repository")


@pytest.fixture(scope="session")
def flower_photos() -> Path:
    """Return the folder of real flower photos; tests that need it are skipped where it is not."""
    folder = Path(os.environ.get("TOPWORK_FLOWER_PHOTOS", PHOTOS / "flower_photos"))
    if not folder.is_dir():
        pytest.skip(f"the real photos are not at {folder} (set TOPWORK_FLOWER_PHOTOS)")
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository that holds the default backbone; the cache has it from now on."""
    from topwork_trainer.backbones import DEFAULT, BackboneChoice
    from topwork_trainer.backbones.exports import Exports
    from topwork_trainer.backbones.prepare import prepare_backbone
    from topwork_trainer.cli.options import cache_directory

    root = tmp_path_factory.mktemp("exported")
    prepare_backbone(Repository(root), BackboneChoice(name=DEFAULT), Exports(cache_directory()))
    return root
