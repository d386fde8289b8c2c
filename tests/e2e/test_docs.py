"""Checks of the README and docs/: commands and examples run unchanged, links and JSON are valid."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.longrunning import operations_pb2
from google.protobuf import descriptor_pool, json_format, message_factory
from google.rpc import error_details_pb2, status_pb2
from support import text_encoders, texts

from topwork.v1 import change_pb2, classifier_service_pb2, model_service_pb2

DOCS = Path(__file__).parents[2] / "docs"
README = "../README.md"
PAGES = [README, *sorted(path.name for path in DOCS.glob("*.md"))]
WALKS = (
    (README, "export.md", "embeddings.md", "texts.md", "audio.md", "batch.md"),
    (
        "quickstart.md",
        "explanations.md",
        "evaluation.md",
        "review.md",
        "tutorial-client.md",
        "http.md",
        "runbook.md",
        "capacity.md",
    ),
)
"""Pages to run one after the other in one shell and directory; the first starts a server."""
NOT_RUN = {
    (README, "make demo"): "takes minutes, and `make test` runs this test",
    (README, "python3 -m venv"): "installs; the tests' environment has it",
    ("batch.md", "export AWS_ACCESS_KEY_ID"): "needs a bucket: test_bucket_inputs.py has one",
    ("batch.md", "import ray"): "needs Ray: `make batch` runs it",
    ("batch.md", "import daft"): "needs Daft: `make batch` runs it",
    ("batch.md", "import json\nfrom pathlib import Path\n\nimport dask"): (
        "needs Dask: `make batch` runs it"
    ),
    ("benchmarks.md", "make bench "): "takes ten minutes",
    ("buckets.md", "pip install"): "needs a bucket: test_bucket_servers.py has one",
    ("buckets.md", "topwork copy-repository"): "needs a bucket: test_copy.py has one",
    ("deployment.md", "make image "): "builds images: `make image-test` does",
    ("deployment.md", "docker run --read-only"): "needs docker",
    ("deployment.md", "docker run --volume"): "needs docker",
    ("deployment.md", "make image\n"): "needs docker",
    (
        "deployment.md",
        "helm install topwork deploy/helm/topwork --set image.repository=REGISTRY/topwork "
        "--set image.tag=0.1.0\n",
    ): "needs a cluster: test_helm.py has its manifests",
    (
        "deployment.md",
        "helm install topwork deploy/helm/topwork --set image.repository=REGISTRY/topwork "
        "--set image.tag=0.1.0 \\\n    --set databaseSecret",
    ): "needs a cluster: test_helm.py has its manifests",
    (
        "deployment.md",
        "helm install topwork deploy/helm/topwork --set image.repository=REGISTRY/topwork "
        "--set image.tag=0.1.0 \\\n    --set repository.url",
    ): "needs a cluster: test_helm.py has its manifests",
    ("clients.md", "import topwork"): "needs a cluster: test_rollout.py uses such targets",
    ("deployment.md", "topwork create flowers"): "needs docker: test_born.py runs these commands",
    ("export.md", "npm install"): "needs npm's registry: test_browser.py does the same",
    ("http.md", "topwork gateway --server topwork.internal"): "needs certificates and another host",
    (
        "kinds.md",
        "topwork classify",
    ): "needs a model of texts: tests/integration/test_kinds.py runs these commands",
    ("kinds.md", "curl"): "needs a model of texts: tests/integration/test_kinds.py sends the same",
    ("medical-images.md", "pip install"): "installs; the tests' environment has it",
    ("medical-images.md", "topwork-train fit chest_xray"): "needs X-rays",
    ("open-inference.md", "import numpy"): "needs tritonclient: `make tritonclient` asks with it",
    ("open-inference.md", "python3 -c"): "needs perf_analyzer",
    ("quickstart.md", "make install"): "is what made the tests' environment",
    ("review.md", "topwork review label"): "needs digests of yours: test_review.py runs them",
    ("runbook.md", "openssl"): "needs a certificate of yours",
    ("runbook.md", "pg_dump"): "needs PostgreSQL's tools and your database",
    ("runbook.md", "kubectl"): "needs a cluster",
    (
        "security.md",
        "topwork serve --repository repository --address 0.0.0.0:50051 \\\n    --tls",
    ): ("needs certificates and another host: test_tls.py makes some"),
    ("security.md", "topwork serve --repository repository --address 0.0.0.0:50051 --mtls"): (
        "needs certificates and another host: test_tls.py makes some"
    ),
    ("security.md", "topwork token"): "appends to a file of yours; the runbook's is run",
    ("texts.md", "pip install"): "needs PyPI and Debian: the test writes a tiny encoder",
    ("texts.md", "from pathlib import Path\n\nfor topic in"): "needs Debian: the test writes texts",
    ("training.md", "hf download"): "needs the hub",
    ("training.md", "pip install"): "needs the hub: test_any_backbone.py fits a tower",
    ("training.md", "topwork-train audit"): "ranks all backbones, which takes minutes",
    (
        "training.md",
        "topwork-train backbone add",
    ): "needs an ONNX file: test_any_backbone.py has one",
    ("training.md", "topwork-train describe"): "fine-tunes, which takes minutes",
    ("tutorial-client.md", "grpcurl -plaintext -d @ 127.0.0.1:50051 topwork.v1.Classifier"): (
        "needs grpcurl: the page's last example sends the same file"
    ),
    ("tutorial-client.md", "grpcurl -plaintext -d @ 127.0.0.1:50051 topwork.v1.Model"): (
        "needs grpcurl: the page's last example sends the same file"
    ),
    ("tutorial-client.md", "grpcurl -plaintext -d '{"): "needs grpcurl; its JSON is parsed",
    ("tutorial-client.md", "npm install"): "needs npm's registry: test_node.py runs it",
    ("tutorial-client.md", "node "): "needs what npm installs: test_node.py runs it",
}
"""Reason why a block cannot be run by a test, by (page, start of the block)."""
SECONDS = 880
"""Timeout of the pages' commands."""
KNOWN = (change_pb2, classifier_service_pb2, error_details_pb2, model_service_pb2, operations_pb2)
"""Modules whose messages may be in an Any; the import registers them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    kind: str
    """Info string of the fence, such as ``sh``."""
    text: str

    @property
    def exempt(self) -> list[tuple[str, str]]:
        """Entries of NOT_RUN that match this block."""
        return [
            (page, start)
            for page, start in NOT_RUN
            if page == self.page and self.text.startswith(start)
        ]


def blocks(page: str, *kinds: str) -> list[Block]:
    """Return a page's blocks of some kinds, in order."""
    text = (DOCS / page).read_text()
    matches = re.finditer(r"^```(\S*)(.*)\n((?:.*\n)*?)```$", text, flags=re.MULTILINE)
    return [
        Block(
            page=page,
            line=text.count("\n", 0, match.start()) + 1,
            kind=(match[1] + match[2]).strip(),
            text=match[3],
        )
        for match in matches
        if match[1] in kinds
    ]


def test_every_command_is_run_or_exempt() -> None:
    """Each block of commands is on a page that is run or in NOT_RUN, once for each entry."""
    run = {page for walk in WALKS for page in walk}
    for page in PAGES:
        commands = blocks(page, "sh", "bash", "console", "python", "py")
        matched = [entry for block in commands for entry in block.exempt]
        assert sorted(matched) == sorted(entry for entry in NOT_RUN if entry[0] == page)
        for block in commands:
            assert page in run or block.exempt, f"{page}:{block.line} is neither run nor exempt"


@pytest.mark.timeout(SECONDS + 20)
@pytest.mark.usefixtures("exported")
@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk[0])
def test_the_commands_of_pages_succeed(walk: Sequence[str], tmp_path: Path) -> None:
    """All commands and examples of the pages succeed; only port numbers are replaced."""
    with contextlib.ExitStack() as taken:
        ports = [taken.enter_context(socket.create_server(("", 0))) for _ in range(3)]
        server, metrics, gateway = (str(free.getsockname()[1]) for free in ports)
    script = "\n".join(_shell(block) for page in walk for block in blocks(page, "sh", "python"))
    script = script.replace("50051", server).replace("9464", metrics).replace("8080", gateway)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TOPWORK_ADDRESS": f"127.0.0.1:{server}",
        "TOPWORK_SERVE_ADDRESS": f"127.0.0.1:{server}",
        "TOPWORK_TRAIN_DEMO_DATA_IMAGES_PER_LABEL": "32",
    }
    _stand_ins(tmp_path)
    log = tmp_path / "log"
    with log.open("w") as file:
        done = subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", f"trap 'kill $(jobs -p); wait' EXIT\n{script}"],
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            timeout=SECONDS,
            check=False,
        )
    output = log.read_text()
    assert done.returncode == 0, output[-4000:]
    before, after, *_ = re.findall(r"((?:held-out/tulips/\S+: .*\n){8})", output)
    assert "tulips 0." not in before
    assert after.count(": tulips 0.") > 4, "most tulips are not recognised after add-class"
    server_log = (tmp_path / "serve.log").read_text()
    assert "unexpected error" not in server_log
    assert "worker died" not in server_log
    assert ("nothing wrong\n" in output) == ("runbook.md" in walk)
    topics = re.findall(r"^medicine (?:True|False)$", output, flags=re.MULTILINE)
    assert (len(topics) >= 3) == ("texts.md" in walk)
    assert ("families revision 1 serves: accuracy 1.000" in output) == ("texts.md" in walk)
    fifth = re.findall(r"^family-4$", output, flags=re.MULTILINE)
    assert len(fifth) == 10 * ("texts.md" in walk)


def test_pages_do_not_classify_training_photos() -> None:
    """No page that is run classifies photos of the training set."""
    for page in (page for walk in WALKS for page in walk):
        for block in blocks(page, "sh"):
            assert "classify --model flowers photos" not in block.text
        for block in blocks(page, "python", "js"):
            for call in re.findall(r"classify\(.*?\)\]?", block.text, flags=re.DOTALL):
                assert "photos" not in call, f"{page}:{block.line}"


def _stand_ins(folder: Path) -> None:
    """Write what texts.md downloads: an encoder, and texts of five topics."""
    sizes = {"max_position_embeddings": text_encoders.POSITIONS}
    text_encoders.folder(folder / "encoder", text_encoders.encoder(), config=sizes)
    names = ("computers", "food", "law", "sports", "medicine")
    for name, topic in zip(names, texts.TOPICS, strict=True):
        own = folder / "topics" / (name if name == "medicine" else f"four/{name}")
        for number, text in enumerate(texts.texts(topic, 25)):
            path = (folder / "topics" / "test" if number < 5 else own) / f"{name}-{number:03}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def _shell(block: Block) -> str:
    if block.exempt:
        return ""
    marker = f"echo '== {block.page}:{block.line}'"
    if block.kind == "python":
        return f"{marker}\npython3 - <<'END OF BLOCK'\n{block.text}END OF BLOCK"
    return f"{marker}\n{block.text}"


@pytest.mark.parametrize(
    "block",
    [block for page in PAGES for block in blocks(page, "json")],
    ids=lambda block: f"{block.page}:{block.line}",
)
def test_json_blocks_are_valid(block: Block) -> None:
    """JSON blocks parse, and those that name a message have only fields of that message."""
    value = json.loads(block.text)
    if name := block.kind.removeprefix("json").strip():
        descriptor = descriptor_pool.Default().FindMessageTypeByName(name)
        parsed = json_format.ParseDict(value, message_factory.GetMessageClass(descriptor)())
        assert json_format.MessageToDict(parsed).keys() == value.keys()


def test_json_blocks_of_the_tutorial_name_their_messages() -> None:
    """Every JSON block of the tutorial names its message, so that its fields are checked."""
    named = {block.kind for block in blocks("tutorial-client.md", "json")}
    assert f"json {status_pb2.Status.DESCRIPTOR.full_name}" in named
    assert all(" " in kind for kind in named)
    assert all(module.DESCRIPTOR.message_types_by_name for module in KNOWN)


@pytest.mark.parametrize("page", PAGES)
def test_the_index_links_all_pages(page: str) -> None:
    """docs/README.md links each page."""
    assert page in {README, "README.md"} or f"]({page})" in (DOCS / "README.md").read_text()


@pytest.mark.parametrize("page", [*PAGES, "../CONTRIBUTING.md", "../SECURITY.md"])
def test_links_lead_to_files_and_headings(page: str) -> None:
    """Each relative link of a page has a target file, and each anchor a heading in it."""
    path = DOCS / page
    for link in re.findall(r'\]\(([^)\s]+)\)|src="([^"]+)"', path.read_text()):
        name, _, anchor = "".join(link).partition("#")
        if name.startswith("http"):
            continue
        target = path.parent / name if name else path
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}
            assert anchor in slugs | set(re.findall(r'name="([^"]+)"', target.read_text())), link


def test_architecture_names_modules_that_exist() -> None:
    """All modules that docs/architecture.md names exist."""
    files = [
        path for root in ("service", "trainer") for path in DOCS.parent.glob(f"{root}/**/*.py")
    ]
    named = re.findall(r"`([a-z_/]+\.py)`", (DOCS / "architecture.md").read_text())
    assert len(named) > 20
    for name in named:
        assert any(path.as_posix().endswith(f"/{name}") for path in files), name
