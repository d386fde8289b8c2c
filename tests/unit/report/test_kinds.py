"""Reports of all kinds speak of what they show."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from support import kinds
from support.kinds import KINDS, TEXT, Sample

from topwork.bundle.store import Repository
from topwork.report.previews import Preview, nouns

WORDS = re.compile(r"\b(images?|photos?|pictures?|thumbnails?)\b", re.IGNORECASE)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository with a model of each kind."""
    return kinds.repository(tmp_path_factory.mktemp("reports") / "repository")


@pytest.mark.parametrize("sample", KINDS, ids=kinds.name_of)
def test_report_names_what_it_is_about(repository: Repository, sample: Sample) -> None:
    """No report of texts or embeddings speaks of images, and none of images of something else."""
    page = repository.report(repository.manifest(sample.model, 1)).decode()
    body = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    assert bool(WORDS.search(body)) is (sample.name == "image"), WORDS.findall(body)
    assert f"Misclassified {nouns(sample.name)['noun']}s" in body


def test_mistaken_texts_are_shown_as_text(tmp_path: Path) -> None:
    """A hostile text that is in a wrong class is an excerpt, without markup of its own."""
    hostile = b"salt pan onion boil soup butter flour oven salt pan onion <b>bold</b>"
    four = TEXT.four()
    four["sailing"].append(hostile)
    made = Repository(tmp_path)
    page = made.report(TEXT.publish(made, "topics", TEXT.exemplars(four))).decode()
    assert '<blockquote class="excerpt" dir="auto">' in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "<b>bold" not in page
    assert "<img" not in page


def test_preview_of_each_kind() -> None:
    """Files are data: URIs of their media type; what is empty or unknown has none."""
    sound = Preview(kind="audio", content=b"RIFF")
    assert (sound.uri, sound.text) == ("data:audio/wav;base64,UklGRg==", "")
    assert replace(sound, kind="image").uri == "data:image/jpeg;base64,UklGRg=="
    text = Preview(kind="text", content="Grüße".encode())
    assert (text.uri, text.text) == ("", "Grüße")
    assert {Preview(kind=kind, content=b"").uri for kind in ("embedding", "image")} == {""}
    assert nouns("audio")["noun"] == "recording"
