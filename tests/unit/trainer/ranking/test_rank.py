"""The backbone that is taken is worth what it costs, and one that cannot be had stops nobody."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from support import tiny
from support.pictures import pictures

from topwork.bundle.files import sha256
from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.store import Repository
from topwork.errors import InvalidInput
from topwork.report.content import RankedBackbone
from topwork_trainer import backbones
from topwork_trainer.backbones import BackboneChoice
from topwork_trainer.backbones.exports import Exports
from topwork_trainer.cache import FILE
from topwork_trainer.cli.rank import rank as command
from topwork_trainer.fit.attempts import Attempts
from topwork_trainer.ranking import rank as module
from topwork_trainer.ranking.probe import Tried
from topwork_trainer.ranking.rank import choose, explain, rank, select, shown

IMAGES = 1000


def tried(choice: str, milliseconds: float, wrong: range, *, images: int = IMAGES) -> Tried:
    """Return a backbone that called all images right but those."""
    asked = backbones.parse(choice)
    accuracy = 1 - len(wrong) / images
    return Tried(
        choice=asked,
        row=RankedBackbone(
            name=asked.name,
            image_size=asked.image_size or 224,
            views=asked.views,
            accuracy=accuracy,
            accuracy_low=accuracy - 0.01,
            accuracy_high=accuracy + 0.01,
            knn_accuracy=0.5,
            milliseconds=milliseconds,
            megabytes=10.0,
            width=1280,
            licence="Apache-2.0",
        ),
        right={str(image): image not in wrong for image in range(images)},
    )


def failed(choice: str, error: str) -> Tried:
    one = tried(choice, 0.0, range(IMAGES))
    return replace(one, row=replace(one.row, error=error), right={})


@pytest.mark.parametrize(
    ("wrong_of_cheap", "wrong_of_dear", "images", "taken"),
    [
        (range(20), range(16), 1000, "cheap"),  # 0.4 points, though never worse
        (range(20), range(15), 1000, "dear"),  # 0.5 points, 2 standard errors
        (range(20), range(20), 1000, "cheap"),
        (range(15), range(20), 1000, "cheap"),
        (range(100), range(100, 190), 1000, "cheap"),  # 1 point, 0.7 standard errors
        (range(100), range(100, 180), 1000, "dear"),  # 2 points, 1.5 standard errors
        (range(1), range(0), 50, "cheap"),  # 2 points, but of one photo
    ],
)
def test_dearer_one_is_taken_only_for_a_gain_beyond_noise(
    wrong_of_cheap: range, wrong_of_dear: range, images: int, taken: str
) -> None:
    """The gain must be half a point and more than a standard error of the paired difference."""
    cheap = tried("cheap", 5, wrong_of_cheap, images=images)
    dear = tried("dear", 9, wrong_of_dear, images=images)
    assert choose([dear, cheap]).choice.name == taken


def test_each_step_up_must_pay() -> None:
    """What was taken is what the next dearer one has to beat, not the cheapest."""
    a, b, c = (
        tried("a", 1, range(50)),
        tried("b", 2, range(30)),
        tried("c", 3, range(27)),
    )
    assert choose([c, a, b]) is b
    assert choose([c, a]) is c


def test_only_photos_that_both_judged_count() -> None:
    """A backbone that missed photos is compared on the others; without any it is not taken."""
    cheap, dear = tried("cheap", 1, range(50)), tried("dear", 2, range(0))
    easy = replace(dear, right={str(image): True for image in range(50, IMAGES)})
    assert choose([cheap, easy]) is cheap
    assert choose([cheap, replace(dear, right={"another": True})]) is cheap


def bench_of(labels: str, count: int) -> Attempts:
    from topwork.training.embed import ImageSource

    return Attempts(
        repository=Repository(Path("unused")),
        sources=[
            ImageSource(name=f"{label}/{index}", label=label, read=bytes)
            for label in labels
            for index in range(count)
        ],
        recipe=tiny.LOGISTIC,
        seed=0,
        cores=1,
        cache=None,
        on_progress=lambda *_: None,
    )


class Script:
    """Stands in for a Prober: knows how each backbone does, and notes which were tried."""

    def __init__(self, *known: Tried) -> None:
        self.known = {str(one.choice): one for one in known}
        self.asked: list[str] = []
        self.photos = 0

    def __call__(self, attempts: Attempts) -> Script:
        """Count the photos, where a Prober is made."""
        self.photos = len(attempts.sources)
        return self

    def tried(self, choice: BackboneChoice) -> Tried:
        """Return it, or a failure."""
        self.asked.append(str(choice))
        return self.known.get(str(choice)) or failed(str(choice), f"no {choice}")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Return what all backbones are asked of."""
    made = Script(
        tried("a", 5, range(100)),
        tried("b", 8, range(90)),
        tried("c", 20, range(120)),
        tried("a@288", 9, range(80)),
        tried("a@320", 11, range(78)),
        tried("b@288", 14, range(79)),
        tried("a+b@320", 22, range(60)),
        tried("a+b@320x2", 44, range(58)),
    )
    monkeypatch.setattr(module, "Prober", made)
    monkeypatch.setattr(backbones, "available", lambda: ["a", "b", "c"])
    return made


def test_rank_is_best_first_and_failures_last(script: Script) -> None:
    """The most accurate leads, the chosen one is marked, and what failed says why."""
    choices = [backbones.parse(one) for one in ("nonsense", "c", "a@288", "a", "b")]
    taken, rows = rank(bench_of("xy", 4), choices)
    assert [row.name for row in rows] == ["a", "b", "a", "c", "nonsense"]
    assert [row.chosen for row in rows] == [True, False, False, False, False]
    assert taken == backbones.parse("a@288")
    assert rows[-1].error == "no nonsense"
    assert script.asked == [str(choice) for choice in choices]


def test_rank_takes_a_sample(script: Script) -> None:
    """Only about as many photos as asked for are embedded."""
    rank(bench_of("wxyz", 100), [BackboneChoice(name="a")], size=40)
    assert script.photos == 40


@pytest.mark.usefixtures("script")
def test_nothing_that_works_is_an_error() -> None:
    """If no backbone can be used, the error has every reason."""
    choices = [BackboneChoice(name="x"), BackboneChoice(name="y")]
    with pytest.raises(InvalidInput, match="x: no x; y: no y"):
        rank(bench_of("xy", 4), choices)
    with pytest.raises(InvalidInput, match="no nonsense"):
        select(bench_of("xy", 4), name="nonsense", image_size="auto", views="auto")


def test_select_looks_further_only_where_it_is_good(script: Script) -> None:
    """All names; then larger images for the best two, these two joined, and its mirror image."""
    taken, rows = select(bench_of("xy", 4), image_size="auto", views="auto")
    assert script.asked == [
        *("a", "b", "c"),
        *("b@288", "b@320", "a@288", "a@320"),
        "a+b@320",
        "a+b@320x2",
    ]
    assert str(taken) == "a+b@320"  # two views gain only 0.2 points
    assert len(rows) == len(script.asked)
    assert [shown(row) for row in rows if row.chosen] == ["a+b@320"]


def test_select_leaves_what_was_asked_for(script: Script) -> None:
    """A named backbone is not exchanged or joined, a given size and number of views are kept."""
    taken, _ = select(bench_of("xy", 4), name="a", image_size="auto")
    assert script.asked == ["a", "a@288", "a@320"]
    assert str(taken) == "a@288"
    script.asked.clear()
    with pytest.raises(InvalidInput):
        select(bench_of("xy", 4), image_size=288, views=2)
    assert script.asked == ["a@288x2", "b@288x2", "c@288x2"]


@pytest.mark.usefixtures("script")
def test_weights_need_a_name(tmp_path: Path) -> None:
    """One file cannot be the weights of every backbone."""
    with pytest.raises(InvalidInput, match="needs the name"):
        select(bench_of("xy", 4), weights=tmp_path / "w.pth")


@pytest.mark.usefixtures("script")
def test_cost_stands_beside_gain() -> None:
    """The sentence has points gained and times the cost, or says that dearer ones are no better."""
    _, rows = rank(bench_of("xy", 4), [BackboneChoice(name="a"), backbones.parse("a@288")])
    assert explain(rows) == (
        "a@288 is taken: accuracy 0.920 at 9.0 ms an image on one core, which is +2.0 points for"
        " 1.8 times the cost of the cheapest, a@224 (accuracy 0.900 at 5.0 ms an image on one core)"
    )
    _, rows = rank(bench_of("xy", 4), [BackboneChoice(name="a"), BackboneChoice(name="c")])
    assert explain(rows).startswith("a@224 is taken: accuracy 0.900 at 5.0 ms")


@pytest.mark.parametrize("text", ["a@288", "a@288x2", "a@x2", "a+b@96x2", "a"])
def test_rows_are_shown_as_they_are_asked_for(text: str) -> None:
    """What a table shows can be given to --backbones, also for what never ran."""
    asked = backbones.parse(text)
    row = replace(failed(text, "no").row, image_size=asked.image_size or 0)
    assert backbones.parse(shown(row)) == asked


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return folders of 12 pictures each."""
    for label in ("amber", "blue", "crimson"):
        folder = tmp_path / "data" / label
        folder.mkdir(parents=True)
        for index, content in enumerate(pictures(label, 12)):
            (folder / f"{index:02d}.png").write_bytes(content)
    return tmp_path / "data"


def export_of(name: str) -> tuple[bytes, BackboneInfo]:
    """Return a tiny backbone that passes for the export of ``name``."""
    model = onnx.load_from_string(tiny.backbone_model())
    model.doc_string = name
    content = model.SerializeToString()
    info = replace(
        tiny.backbone_info(content),
        name=name,
        identity=backbones.parse(name).identity(),
        digest=sha256(content),
    )
    return content, info


def test_command_prints_rows(data: Path, tmp_path: Path) -> None:
    """With --json all rows are one object; exports come from the cache, embeddings go there."""
    for name in ("efficientnet_lite0", "efficientnet_lite1@64"):
        Exports(tmp_path / "cache").put(*export_of(name))
    wanted = "efficientnet_lite0, efficientnet_lite1@64, efficientnet_lite9"
    arguments = [str(data), "--backbones", wanted, "--cache", str(tmp_path / "cache")]
    done = CliRunner().invoke(command, [*arguments, "--sample", "30", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["chosen"] in {"efficientnet_lite0", "efficientnet_lite1@64"}
    *working, broken = told["backbones"]
    assert {row["name"] for row in working} == {"efficientnet_lite0", "efficientnet_lite1"}
    assert {row["width"] for row in working} == {tiny.WIDTH}
    assert all(row["accuracy"] > 0.8 and row["milliseconds"] > 0 for row in working)
    assert "unknown backbone 'efficientnet_lite9'" in broken["error"]
    assert (tmp_path / "cache" / FILE).stat().st_size > 0


def test_command_shows_a_table(data: Path, tmp_path: Path) -> None:
    """A person sees a table and a sentence; without a cache nothing is left but the exports."""
    Repository(tmp_path / "repository").put_backbone(*export_of("efficientnet_lite0@64x2"))
    options = ["--repository", str(tmp_path / "repository"), "--no-cache"]
    asked = ["--backbones", "efficientnet_lite0", "--image-size", "64", "--views", "2"]
    done = CliRunner().invoke(command, [str(data), *asked, *options])
    assert done.exit_code == 0, done.output
    assert "accuracy (95 %)" in done.stdout
    assert "efficientnet_lite0@16x2 is taken" in done.stdout
    assert [path.name for path in (tmp_path / "repository").iterdir()] == ["backbones"]


def test_command_refuses_what_no_backbone_takes(data: Path) -> None:
    """A size out of bounds is an error of the command, not a row."""
    done = CliRunner().invoke(command, [str(data), "--backbones", "efficientnet_lite0@9999"])
    assert isinstance(done.exception, InvalidInput)
    assert "9999" in str(done.exception)
