"""The page says what its content says, is safe to open, and can be read by everyone."""

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
    """What a browser makes of a page: elements with their attributes, and the text it shows."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Note text, that of the style sheet included."""
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    def values(self, attribute: str) -> list[str]:
        """Return all values of an attribute."""
        return [value for _, one in self.elements if (value := one.get(attribute)) is not None]


@pytest.fixture(scope="module")
def page() -> Page:
    """Return a page with all sections, and with names that are as bad as can be."""
    made = full(content(UGLY))
    making = replace(
        made.making,
        command="topwork-train fit '<b>photos</b>'",
        notes=("<i>note</i> & more",),
        findings=tuple(
            replace(one, message="<u>found</u>", images=("<img src=x onerror=alert(1)>.jpg",) * 2)
            for one in made.making.findings
        ),
    )
    names = tuple(f'"><img src=x onerror=alert({row})>.jpg' for row in range(len(made.exemplars)))
    exemplars = replace(made.exemplars, names=names)
    return Page(render(replace(made, making=making, exemplars=exemplars)))


def test_equal_content_gives_an_equal_page() -> None:
    """The page depends on its content and on nothing else."""
    assert render(full(content())) == render(full(content()))


def test_the_headline_says_what_matters() -> None:
    """Model, revision, time, accuracy with its interval, images and command are there in words."""
    made = full(content())
    text = " ".join(Page(render(made)).text.replace("\N{NARROW NO-BREAK SPACE}", " ").split())
    metrics = made.metrics
    for fact in (
        "flowers revision 2",
        "2026-03-01 14:05 UTC",
        f"{100 * metrics.accuracy:.1f} % of images are named right",
        f"between {100 * metrics.accuracy_low:.1f} % and {100 * metrics.accuracy_high:.1f} %",
        "Images90",
        "Classes3",
        "Unknown found70 %",
        "topwork-train fit photos",
        "The fine-tuned backbone was not taken.",
        "judged by a head that saw no image of its part",
    ):
        assert fact.replace(" ", "") in text.replace(" ", "")


@pytest.mark.parametrize("label", UGLY)
def test_names_are_shown_as_they_are(page: Page, label: str) -> None:
    """Whatever characters a label has, it is read as text: in tables, and in the map."""
    assert page.text.count(label) >= 5


def test_names_become_no_markup(page: Page) -> None:
    """No label, file name, message or command adds an element or a handler to the page."""
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "i", "u", "iframe", "object", "embed", "form", "link"}
    assert not [name for _, one in page.elements for name in one if name.startswith("on")]
    assert {one["alt"] for one in page.all("img")} == {"Thumbnail"}
    for text in ("<b>photos</b>", "<i>note</i> & more", "<u>found</u>", "onerror=alert(1)"):
        assert text in page.text


def test_nothing_is_fetched(page: Page) -> None:
    """Pictures are in the page, links stay in it, styles load nothing, and a policy says so."""
    assert page.values("src")
    assert all(value.startswith("data:image/jpeg;base64,") for value in page.values("src"))
    assert all(value.startswith("#") for value in page.values("href"))
    for attribute in ("srcset", "action", "data", "poster", "background", "xlink:href"):
        assert not page.values(attribute)
    raw = render(full(content()))
    assert not re.search(r"https?:|//|url\(|@import", re.sub(r'src="data:[^"]*"', "", raw))
    assert [one["content"] for one in page.all("meta") if "http-equiv" in one] == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    ]
    assert [tag for tag, _ in page.elements].index("style") > 3  # html, head, charset, policy


def test_headings_leave_out_no_level(page: Page) -> None:
    """There is one first heading, and none is more than a level below the one before."""
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_tables_and_drawings_can_be_read_aloud(page: Page) -> None:
    """Each header cell has a scope; each drawing has a title and a description, or is hidden."""
    assert all(one.get("scope") in {"col", "row"} for one in page.all("th"))
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    for one in page.all("svg"):
        if one.get("aria-hidden") != "true":
            assert one["role"] == "img"
            assert set((one["aria-labelledby"] or "").split()) <= set(ids)
    assert sum(one.get("role") == "img" for one in page.all("svg")) == 2
    assert all(value[1:] in ids for value in page.values("href"))


def test_a_page_says_nothing_of_what_there_is_not() -> None:
    """Without parent, unknown, findings, names, thumbnails and mistakes the rest still stands."""
    page = Page(render(content(("cat", "dog"), mistakes=0, names=False, thumbnails=False)))
    for title in ("What changed", "nothing it knows", "audit", "What was tried", "may be wrong"):
        assert title not in page.text
    assert "No judged image was called wrong." in page.text
    assert not page.all("img")


def test_a_missing_thumbnail_is_said() -> None:
    """A mistake without a picture has an empty place, not a broken image."""
    page = Page(render(content(thumbnails=False)))
    assert "no picture" in page.text
    assert not page.all("img")


def test_a_rejection_comes_first() -> None:
    """A rejected revision says so at the top, with each reason as text, and in its title."""
    page = Page(render(candidate(content(), rejected=True)))
    text = page.text
    for failure in FAILURES:
        assert failure in text
    assert text.index("Rejected: this revision does not serve.") < text.index("named right")
    assert "revision 2 (rejected)" in text
    assert "at most 2.0 points may be lost" in text


def test_what_serves_was_not_rejected() -> None:
    """Without a rejection the page does not speak of one."""
    assert "ejected" not in re.sub(
        r"<style>.*</style>", "", render(candidate(content())), flags=re.DOTALL
    )


def test_a_candidate_shows_what_it_did() -> None:
    """Recalls before and after, calibration, the taught label with its interval, confused pairs."""
    page = render(candidate(content()))
    shown = Page(page).text.replace("\N{MINUS SIGN}", "-")
    text = " ".join(shown.replace("\N{NARROW NO-BREAK SPACE}", " ").split())
    for fact in (
        "On the 2 labels that both know, accuracy is worse by 5.0 points",
        "tulip, the label that was taught, is recognised in 40.0 % of its 30 images",
        "very likely between 25.0 % and 58.0 %",
        "Accuracy on labels of both95.0 %90.0 %-5.0-8.0 to -2.0",
        "rose30100 %90.0 %-10.0",
        "tuliprose1860.0 %",
        "the 60 images that both revisions judged",
    ):
        assert fact in text


def test_images_that_fine_tuning_saw_are_said_to_be_left_out() -> None:
    """The headline says how many images were never judged."""
    made = content()
    seen = np.arange(len(made.exemplars)) < 7
    text = Page(render(replace(made, exemplars=replace(made.exemplars, seen=seen)))).text
    assert "The 7 images that fine-tuning has seen are never judged." in text


def test_half_a_surrogate_pair_can_be_written() -> None:
    """A file name that is no valid Unicode does not stop the page from being stored."""
    made = content(mistakes=1)
    names = ("torn\udce4.jpg",) * len(made.exemplars)
    page = render(replace(made, exemplars=replace(made.exemplars, names=names)))
    assert "torn\\xe4.jpg" in page
    assert page.encode()


@pytest.mark.slow
def test_a_thousand_labels_stay_small() -> None:
    """1,000 labels with an answer in every corner of the matrix are a page of below 2 MB."""
    labels = [f"species number {index:04}" for index in range(1000)]
    assert len(render(full(content(labels, images=4, mistakes=0.5))).encode()) < 2_000_000


@pytest.mark.slow
def test_a_candidate_of_many_labels_stays_small() -> None:
    """1,000 labels, all of them changed, with findings of each, are a page of below 3 MB."""
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
    """2,000 images with thumbnails as large as real ones are a page of below 0.5 MB."""
    made = full(content(images=667))
    thumbnails = (b"\xff\xd8" + bytes(1998),) * len(made.exemplars)
    page = render(replace(made, exemplars=replace(made.exemplars, thumbnails=thumbnails)))
    assert len(page.encode()) < 500_000


def test_a_label_that_was_never_judged_has_no_recall() -> None:
    """Where fine-tuning saw all images of a label, the table says that it is not judged."""
    made = content()
    kept = np.flatnonzero(made.exemplars.targets < 2)
    targets, probabilities = made.exemplars.targets[kept], made.judged.probabilities[kept]
    metrics = evaluate(targets, probabilities, made.manifest.labels, folds=5)
    judged = Judged(rows=kept, probabilities=probabilities)
    assert "not judged" in Page(render(replace(made, judged=judged, metrics=metrics))).text
