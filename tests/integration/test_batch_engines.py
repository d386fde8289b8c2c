"""Ray Data, Daft and Dask from PyPI, in an environment of their own: `make batch`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from support import photo_sets, tiny
from support.pictures import picture, pictures

import topwork
from topwork.bundle.store import Repository
from topwork_trainer.embedding.embed import EmbedConfig, embed_photos

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-batch" / "bin" / "python"
SECONDS = 120

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON.exists(), reason="Ray, Daft and Dask take 500 MB, in an environment: make batch"
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a repository and photos, one of them broken."""
    root = tmp_path_factory.mktemp("engines")
    tiny.repository(root / "repository")
    for label in ("amber", "blue", "green"):
        (root / "held-out" / label).mkdir(parents=True)
        for number in range(9):
            content = picture(label, 80 + number)
            (root / "held-out" / label / f"{number}.jpg").write_bytes(content)
    (root / "held-out" / "blue" / "broken.jpg").write_bytes(b"nothing")
    return root


def run(folder: Path, *arguments: str | Path) -> str:
    """Run Python in the environment of the engines and return its standard output."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as sockets:  # a short path
        done = subprocess.run(
            [PYTHON, *arguments],
            cwd=folder,
            env={
                **os.environ,
                "HOME": str(folder),  # Ray stores a token there
                "PYTHONPATH": f"{ROOT / 'service'}:{ROOT / 'trainer'}",
                "RAY_TMPDIR": sockets,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def run_example(folder: Path, package: str) -> str:
    """Run the example of docs/batch.md that imports ``package`` and return its output."""
    page = (ROOT / "docs" / "batch.md").read_text()
    (block,) = re.findall(
        rf"```python\n((?:(?!```).*\n)*?import {package}\b(?:(?!```).*\n)*)```", page
    )
    (folder / f"{package}_example.py").write_text(block.replace('"flowers"', '"colours"'))
    return run(folder, f"{package}_example.py")


def expected(folder: Path) -> dict[str, topwork.ImageResult]:
    """Return the results of ``topwork.open`` by path below the folder."""
    paths = sorted((folder / "held-out").glob("*/*.jpg"))
    results = topwork.open(folder / "repository", "colours").predict(paths, top_k=3)
    return {
        str(path.relative_to(folder)): result for path, result in zip(paths, results, strict=True)
    }


def assert_answers(folder: Path, rows: list[tuple[str, dict[str, Any]]]) -> None:
    """Assert that rows, pairs of a path and its answer, have the results of ``topwork.open``."""
    found = {path[path.index("held-out") :]: answer for path, answer in rows}
    results = expected(folder)
    assert found.keys() == results.keys()
    for path, result in results.items():
        answer = found[path]
        shown = tuple(zip(answer["labels"], answer["probabilities"], strict=True))
        assert shown == result.predictions
        assert bool(answer["error"]) == (result.error is not None)
    assert sum(bool(answer["error"]) for answer in found.values()) == 1


def test_ray_data_gives_the_answers_of_an_opened_model(folder: Path) -> None:
    """The example of the documentation, in tasks on two workers."""
    run_example(folder, "ray")
    rows = ds.dataset(folder / "answers-ray").to_table().to_pylist()
    assert_answers(folder, [(row["path"], row) for row in rows])
    assert {row["revision"] for row in rows} == {1}


def test_daft_gives_the_answers_of_an_opened_model(folder: Path) -> None:
    """The example of the documentation, with a batch function of a column."""
    run_example(folder, "daft")
    rows = ds.dataset(folder / "answers-daft").to_table().to_pylist()
    assert_answers(folder, [(row["path"], row["answer"]) for row in rows])


def test_dask_gives_the_answers_of_an_opened_model(folder: Path) -> None:
    """The example of the documentation, with lists of paths in processes."""
    run_example(folder, "dask.bag")
    files = sorted((folder / "answers-dask").glob("*.jsonl"))
    assert len(files) == 4
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert_answers(folder, list(zip(expected(folder), rows, strict=True)))


ACTORS = """
import ray
from topwork.batch import Embedder

ray.init(num_cpus=4, include_dashboard=False)  # actors take two, reading the others
photos = ray.data.read_binary_files("held-out", include_paths=True)
rows = photos.map_batches(
    Embedder,
    fn_constructor_args=("repository", "colours"),
    fn_constructor_kwargs={"column": "bytes", "drop": ["bytes"]},
    compute=ray.data.ActorPoolStrategy(size=2),
    batch_size=8,
)
rows.write_parquet("embedded-ray")
"""


def test_ray_actors_embed_like_an_opened_model(folder: Path) -> None:
    """A pool of actors makes the objects itself; embeddings and digests are equal, bit by bit."""
    (folder / "actors.py").write_text(ACTORS)
    run(folder, "actors.py")
    rows = ds.dataset(folder / "embedded-ray").to_table().to_pylist()
    model = topwork.open(folder / "repository", "colours")
    assert len(rows) == 28
    for row in rows:
        if row["error"]:
            assert row["path"].endswith("broken.jpg")
            continue
        embedded = model.embed(folder / row["path"])
        assert row["digest"] == embedded.digest
        assert row["embedding"] == embedded.embedding.tolist()


def embed(folder: Path, data: Path, out: Path) -> str:
    """Run ``embed --engine ray``."""
    repository = str(folder / "repository")
    options = ["--model", "colours", "--repository", repository, "--part-photos", "4"]
    return run(
        folder,
        *("-m", "topwork_trainer", "embed", data, "--out", out, "--engine", "ray", "--json"),
        *options,
    )


@pytest.fixture(scope="module")
def local(folder: Path) -> Path:
    """Return the parts that the local engine makes."""
    config = EmbedConfig(
        data=folder / "held-out",
        out=folder / "local",
        model="colours",
        repository=folder / "repository",
        part_photos=4,
    )
    plan = embed_photos(config, lambda _: lambda _: None).plan
    assert plan.parts == 7
    return folder / "local"


def test_embed_with_ray_resumes_and_gives_the_bytes_of_the_local_engine(
    folder: Path, local: Path
) -> None:
    """Parts that are there are left; the others are equal, whichever worker made them."""
    out = folder / "by-ray"
    shutil.copytree(local, out)
    for number in (0, 1, 3, 4, 6):
        (out / f"part-{number:05}.parquet").unlink()
    kept = (out / "part-00002.parquet").stat().st_mtime_ns
    assert '"embedded_now": 20' in embed(folder, folder / "held-out", out)
    assert (out / "part-00002.parquet").stat().st_mtime_ns == kept
    for part in sorted(local.glob("*.parquet")):
        assert (out / part.name).read_bytes() == part.read_bytes()


DIES = """
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from topwork_trainer.embedding.embed import EmbedConfig, embed_photos

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
machine = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
done = []


def on_photos(photos):
    done.append(photos)
    if len(done) == 1:
        cluster.remove_node(machine, allow_graceful=False)


config = EmbedConfig(
    data=Path("held-out"),
    out=Path(sys.argv[1]),
    engine="ray",
    model="slow",
    repository=Path("repository"),
    part_photos=4,
)
assert embed_photos(config, lambda missing: on_photos).plan.parts == 7
print("machine lives:", machine.any_processes_alive(), "parts:", len(done))
ray.shutdown()
cluster.shutdown()
"""


def test_parts_of_a_machine_that_dies_are_made_elsewhere(folder: Path) -> None:
    """Ray repeats its tasks; every part is there, with the bytes of the local engine."""
    graph = tiny.busy_backbone_model()
    repository = Repository(folder / "repository")
    shown = {label: pictures(label, 12) for label in ("amber", "blue")}
    tiny.publish(repository, "slow", tiny.embed_pictures(shown), backbone=graph)
    (folder / "dies.py").write_text(DIES)
    assert "machine lives: False parts: 7" in run(folder, "dies.py", "after-death")
    config = EmbedConfig(
        data=folder / "held-out",
        out=folder / "undisturbed",
        model="slow",
        repository=folder / "repository",
        part_photos=4,
    )
    embed_photos(config, lambda _: lambda _: None)
    for part in sorted((folder / "undisturbed").glob("*.parquet")):
        assert (folder / "after-death" / part.name).read_bytes() == part.read_bytes()


def test_ray_engine_refuses_photos_in_an_archive(folder: Path) -> None:
    """The message says what to do; no part is written."""
    archive = photo_sets.zipped(folder / "photos.zip", folder / "held-out")
    with pytest.raises(AssertionError, match="unpack the archive"):
        embed(folder, archive, folder / "archive")
    assert not list((folder / "archive").glob("*.parquet"))
