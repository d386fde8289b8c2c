"""The report page: facts, escaping, content security policy, accessibility and size."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from support.reports import COMPARISON, FAILURES, candidate, content, full

from topwork.bundle.comparison import LabelChange
from topwork.bundle.metrics import evaluate
from topwork.learning.learn import Judged
from topwork.report.page import render

UGLY = (
    "<script>alert('x')</script>",
    "\"quotes\" & 'apostrophes' </title></style>",
    "שלום עולם",
    "a" * 100,
    "🌻 flower",
    "{{ manifest.seed }}",
)


class Page(HTMLParser):
    """Parsed page: elements with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record an element."""
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Record text, including the style sheet."""
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of all elements with this tag."""
        return [attributes for name, attributes in self.elements if name == tag]

    def values(self, attribute: str) -> list[str]:
        """Return all values of ``attribute``."""
        return [
            value
            for _, attributes in self.elements
            if (value := attributes.get(attribute)) is not None
        ]


@pytest.fixture(scope="module")
def page() -> Page:
    """Return a page with all sections, whose names contain markup."""
    made = full(content(UGLY))
    making = replace(
        made.making,
        command="topwork-train fit '<b>photos</b>'",
        notes=("<i>note</i> & more",),
        findings=tuple(
            replace(
                finding, message="<u>found</u>", images=("<img src=x onerror=alert(1)>.jpg",) * 2
            )
            for finding in made.making.findings
        ),
    )
    names = tuple(f'"><img src=x onerror=alert({row})>.jpg' for row in range(len(made.exemplars)))
    exemplars = replace(made.exemplars, names=names)
    return Page(render(replace(made, making=making, exemplars=exemplars)))


def test_render_is_deterministic() -> None:
    """The same content gives the same page."""
    assert render(full(content())) == render(full(content()))


def test_header_has_the_key_facts() -> None:
    """The header has model, revision, time, accuracy with its interval, images and command."""
    made = full(content())
    text = " ".join(Page(render(made)).text.replace("\N{NARROW NO-BREAK SPACE}", " ").split())
    metrics = made.metrics
    for fact in (
        "flowers revision 2",
        "2026-03-01 14:05 UTC",
        f"{100 * metrics.accuracy:.1f} % accuracy: the share of 90 evaluated images",
        f"between {100 * metrics.accuracy_low:.1f} % and {100 * metrics.accuracy_high:.1f} %",
        "Images90",
        "Classes3",
        "Unknown detected70 %",
        "topwork-train fit photos",
        "The fine-tuned backbone was not taken.",
        "evaluated by a head that was trained without its fold",
    ):
        assert fact.replace(" ", "") in text.replace(" ", "")


@pytest.mark.parametrize("label", UGLY)
def test_labels_are_shown_as_text(page: Page, label: str) -> None:
    """A label with any characters appears as text in tables and in the map."""
    assert page.text.count(label) >= 5


def test_user_text_is_escaped(page: Page) -> None:
    """No label, file name, message or command adds an element or an event handler."""
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "i", "u", "iframe", "object", "embed", "form", "link"}
    assert not [
        name for _, attributes in page.elements for name in attributes if name.startswith("on")
    ]
    assert {image["alt"] for image in page.all("img")} == {"Thumbnail"}
    for text in ("<b>photos</b>", "<i>note</i> & more", "<u>found</u>", "onerror=alert(1)"):
        assert text in page.text


def test_nothing_is_fetched(page: Page) -> None:
    """Pictures are data: URIs, links are fragments, and a policy forbids all requests."""
    assert page.values("src")
    assert all(value.startswith("data:image/jpeg;base64,") for value in page.values("src"))
    assert all(value.startswith("#") for value in page.values("href"))
    for attribute in ("srcset", "action", "data", "poster", "background", "xlink:href"):
        assert not page.values(attribute)
    raw = render(full(content()))
    assert not re.search(r"https?:|//|url\(|@import", re.sub(r'src="data:[^"]*"', "", raw))
    assert [meta["content"] for meta in page.all("meta") if "http-equiv" in meta] == [
        "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    ]
    assert [tag for tag, _ in page.elements].index("style") > 3  # html, head, charset, policy


def test_headings_skip_no_level(page: Page) -> None:
    """There is one h1, and no heading is more than a level below the previous heading."""
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_tables_and_drawings_are_accessible(page: Page) -> None:
    """Header cells have a scope; drawings have a title and a description, or are hidden."""
    assert all(header.get("scope") in {"col", "row"} for header in page.all("th"))
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    for svg in page.all("svg"):
        if svg.get("aria-hidden") != "true":
            assert svg["role"] == "img"
            assert set((svg["aria-labelledby"] or "").split()) <= set(ids)
    assert sum(svg.get("role") == "img" for svg in page.all("svg")) == 2
    assert all(value[1:] in ids for value in page.values("href"))


def test_sections_without_content_are_left_out() -> None:
    """A page without parent, unknown metrics, findings and mistakes has none of their sections."""
    page = Page(render(content(("cat", "dog"), mistakes=0, names=False, thumbnails=False)))
    for title in (
        "Comparison with",
        "Out-of-distribution",
        "audit",
        "Model selection",
        "Suspected label errors",
    ):
        assert title not in page.text
    assert "No evaluated image is misclassified." in page.text
    assert not page.all("img")


def test_mistake_without_thumbnail_has_a_placeholder() -> None:
    """A mistake without a thumbnail has a placeholder, not a broken image."""
    page = Page(render(content(thumbnails=False)))
    assert "no thumbnail" in page.text
    assert not page.all("img")


def test_a_rejection_comes_first() -> None:
    """The page of a rejected revision has the rejection at the top and in its title."""
    page = Page(render(candidate(content(), rejected=True)))
    text = page.text
    for failure in FAILURES:
        assert failure in text
    assert text.index("Rejected: this revision does not serve.") < text.index("accuracy: the share")
    assert "revision 2 (rejected)" in text
    assert "accuracy on the old labels may drop by at most 2.0 points" in text


def test_page_without_rejection_does_not_mention_one() -> None:
    """The page of a revision that was not rejected does not contain the word."""
    assert "ejected" not in re.sub(
        r"<style>.*</style>", "", render(candidate(content())), flags=re.DOTALL
    )


def test_candidate_page_shows_the_comparison() -> None:
    """The comparison has recalls, the added label with its interval, and confused pairs."""
    page = render(candidate(content()))
    shown = Page(page).text.replace("\N{MINUS SIGN}", "-")
    text = " ".join(shown.replace("\N{NARROW NO-BREAK SPACE}", " ").split())
    for fact in (
        "On the 2 labels of both revisions, accuracy is worse by 5.0 points",
        "tulip, has a recall of 40.0 %: the share of its 30 images that are recognised",
        "very likely between 25.0 % and 58.0 %",
        "Accuracy on common labels95.0 %90.0 %-5.0-8.0 to -2.0",
        "rose30100 %90.0 %-10.0",
        "tuliprose1860.0 %",
        "the 60 images that both revisions were evaluated on",
    ):
        assert fact in text


def test_header_counts_groups() -> None:
    """The header says that folds keep groups together, only if there are groups."""
    made = content()
    assert "groups together" not in Page(render(made)).text
    groups = np.zeros((len(made.exemplars), 16), np.uint8)
    groups[:40, 0] = 1 + np.arange(40) // 10
    text = Page(render(replace(made, exemplars=replace(made.exemplars, groups=groups)))).text
    assert "Folds keep groups together (4 groups)" in text


def test_header_counts_images_seen_by_fine_tuning() -> None:
    """The header has the number of images that were not evaluated."""
    made = content()
    seen = np.arange(len(made.exemplars)) < 7
    text = Page(render(replace(made, exemplars=replace(made.exemplars, seen=seen)))).text
    assert "The 7 images that fine-tuning has seen are not evaluated." in text


def test_lone_surrogate_is_escaped() -> None:
    """A page with a file name that is not valid Unicode can be encoded as UTF-8."""
    made = content(mistakes=1)
    names = ("torn\udce4.jpg",) * len(made.exemplars)
    page = render(replace(made, exemplars=replace(made.exemplars, names=names)))
    assert "torn\\xe4.jpg" in page
    assert page.encode()


@pytest.mark.slow
def test_a_thousand_labels_stay_small() -> None:
    """The page of 1,000 labels with mistakes all over the matrix is smaller than 2 MB."""
    labels = [f"species number {index:04}" for index in range(1000)]
    assert len(render(full(content(labels, images=4, mistakes=0.5))).encode()) < 2_000_000


@pytest.mark.slow
def test_a_candidate_of_many_labels_stays_small() -> None:
    """The page of 1,000 changed labels, each with findings, is smaller than 3 MB."""
    labels = [f"species number {index:04}" for index in range(1000)]
    made = candidate(full(content(labels, images=4, mistakes=0.5)), rejected=True)
    change = LabelChange(label="", images=4, recall_before=0.5, recall_after=0.25, lost=2, gained=1)
    comparison = replace(COMPARISON, labels=tuple(replace(change, label=label) for label in labels))
    finding = replace(made.making.findings[0], images=made.exemplars.names[:200])
    many = tuple(replace(finding, message=label) for label in labels)
    made = replace(
        made,
        manifest=replace(made.manifest, comparison=comparison),
        making=replace(made.making, findings=many),
    )
    assert len(render(made).encode()) < 3_000_000


def test_two_thousand_images_stay_small() -> None:
    """The page of 2,000 images with thumbnails of realistic size is smaller than 0.5 MB."""
    made = full(content(images=667))
    thumbnails = (b"\xff\xd8" + bytes(1998),) * len(made.exemplars)
    page = render(replace(made, exemplars=replace(made.exemplars, thumbnails=thumbnails)))
    assert len(page.encode()) < 500_000


def test_label_without_evaluated_images_has_no_recall() -> None:
    """A label whose images were all seen by fine-tuning is shown as not evaluated."""
    made = content()
    evaluated = np.flatnonzero(made.exemplars.targets < 2)
    targets, probabilities = made.exemplars.targets[evaluated], made.judged.probabilities[evaluated]
    metrics = evaluate(targets, probabilities, made.manifest.labels, folds=5)
    judged = Judged(rows=evaluated, probabilities=probabilities)
    assert "not evaluated" in Page(render(replace(made, judged=judged, metrics=metrics))).text
