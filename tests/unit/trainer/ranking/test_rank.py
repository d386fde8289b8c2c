"""Ranking of backbones by gain and cost; a backbone that fails does not stop it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from support import tiny
from support.pictures import pictures

from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.store import Repository
from topwork.errors import InvalidInput
from topwork.report.content import RankedBackbone
from topwork.storage.files import sha256
from topwork_trainer import backbones
from topwork_trainer.backbones import BackboneChoice
from topwork_trainer.backbones.exports import Exports
from topwork_trainer.cache import FILE
from topwork_trainer.cli.rank import rank as command
from topwork_trainer.fit.attempts import Attempts
from topwork_trainer.ranking import rank as module
from topwork_trainer.ranking.probe import ProbeResult
from topwork_trainer.ranking.rank import choose, explain, notation, rank, select

IMAGES = 1000


def trial(text: str, milliseconds: float, wrong: range, *, images: int = IMAGES) -> ProbeResult:
    """Return the trial of a backbone that was right on all images except ``wrong``."""
    choice = backbones.parse(text)
    accuracy = 1 - len(wrong) / images
    return ProbeResult(
        choice=choice,
        row=RankedBackbone(
            name=choice.name,
            image_size=choice.image_size or 224,
            views=choice.views,
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


def failed(text: str, error: str) -> ProbeResult:
    successful = trial(text, 0.0, range(IMAGES))
    return replace(successful, row=replace(successful.row, error=error), right={})


@pytest.mark.parametrize(
    ("wrong_of_cheap", "wrong_of_expensive", "images", "chosen"),
    [
        (range(20), range(16), 1000, "cheap"),  # 0.4 points, though never worse
        (range(20), range(15), 1000, "expensive"),  # 0.5 points, 2 standard errors
        (range(20), range(20), 1000, "cheap"),
        (range(15), range(20), 1000, "cheap"),
        (range(100), range(100, 190), 1000, "cheap"),  # 1 point, 0.7 standard errors
        (range(100), range(100, 180), 1000, "expensive"),  # 2 points, 1.5 standard errors
        (range(1), range(0), 50, "cheap"),  # 2 points, but only one photo
    ],
)
def test_choose_takes_an_expensive_backbone_only_for_a_gain_beyond_noise(
    wrong_of_cheap: range, wrong_of_expensive: range, images: int, chosen: str
) -> None:
    """The gain must be half a point and more than a standard error of the paired difference."""
    cheap = trial("cheap", 5, wrong_of_cheap, images=images)
    expensive = trial("expensive", 9, wrong_of_expensive, images=images)
    assert choose([expensive, cheap]).choice.name == chosen


def test_choose_compares_with_the_backbone_chosen_so_far() -> None:
    """The next more expensive backbone must beat the chosen one, not the cheapest."""
    a, b, c = (
        trial("a", 1, range(50)),
        trial("b", 2, range(30)),
        trial("c", 3, range(27)),
    )
    assert choose([c, a, b]) is b
    assert choose([c, a]) is c


def test_choose_takes_a_pooled_backbone_only_for_a_gain() -> None:
    """A pooled backbone costs no less than the same one, even if it was faster by chance."""
    plain, pooled = trial("a", 5, range(20)), trial("a:pooled", 4.9, range(19))
    wider = replace(pooled, row=replace(pooled.row, width=1904))
    assert choose([wider, plain]) is plain
    better = replace(trial("a:pooled", 4.9, range(10)), row=wider.row)
    assert choose([better, plain]) is better


def test_choose_takes_the_narrower_of_two_pools() -> None:
    """Times of one network's embeddings differ by chance only, so their widths decide."""
    narrow, wide = trial("hf/a/b", 5, range(20)), trial("hf/a/b:cls-mean", 4.9, range(19))
    wide = replace(wide, row=replace(wide.row, width=1904))
    assert choose([wide, narrow]) is narrow


def test_choose_compares_photos_that_both_judged() -> None:
    """Backbones are compared on shared photos; without any, the expensive one is not chosen."""
    cheap, expensive = trial("cheap", 1, range(50)), trial("expensive", 2, range(0))
    easy = replace(expensive, right={str(image): True for image in range(50, IMAGES)})
    assert choose([cheap, easy]) is cheap
    assert choose([cheap, replace(expensive, right={"another": True})]) is cheap


def attempts_of(labels: str, count: int) -> Attempts:
    from topwork.inputs.image_source import ImageSource

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


class FakeProber:
    """Prober with known trials, which records the probed backbones."""

    def __init__(self, *trials: ProbeResult) -> None:
        self.trials = {str(trial.choice): trial for trial in trials}
        self.probed: list[str] = []
        self.photos = 0

    def __call__(self, attempts: Attempts) -> FakeProber:
        """Stand in for the constructor: count the photos."""
        self.photos = len(attempts.sources)
        return self

    def probe(self, choice: BackboneChoice) -> ProbeResult:
        """Return the known trial, or a failure."""
        self.probed.append(str(choice))
        return self.trials.get(str(choice)) or failed(str(choice), f"no {choice}")

    def probe_pools(self, choice: BackboneChoice) -> list[ProbeResult]:
        """Return the known trials of the network, or a failure."""
        self.probed.append(f"{choice}:auto")
        known = [trial for text, trial in self.trials.items() if text.startswith(str(choice))]
        return known or [failed(f"{choice}:auto", "no tokens")]


@pytest.fixture
def prober(monkeypatch: pytest.MonkeyPatch) -> FakeProber:
    """Return the prober that stands in for the real one."""
    fake = FakeProber(
        trial("a", 5, range(100)),
        trial("b", 8, range(90)),
        trial("c", 20, range(120)),
        trial("a@288", 9, range(80)),
        trial("a@320", 11, range(78)),
        trial("b@288", 14, range(79)),
        trial("a+b@320", 22, range(60)),
        trial("a+b@320x2", 44, range(58)),
    )
    monkeypatch.setattr(module, "Prober", fake)
    monkeypatch.setattr(backbones, "available", lambda: ["a", "b", "c"])
    return fake


def test_rank_sorts_by_accuracy_with_failures_last(prober: FakeProber) -> None:
    """The most accurate row is first, the chosen row is marked, and failures have the error."""
    choices = [backbones.parse(text) for text in ("nonsense", "c", "a@288", "a", "b")]
    chosen, rows = rank(attempts_of("xy", 4), choices)
    assert [row.name for row in rows] == ["a", "b", "a", "c", "nonsense"]
    assert [row.chosen for row in rows] == [True, False, False, False, False]
    assert chosen == backbones.parse("a@288")
    assert rows[-1].error == "no nonsense"
    assert prober.probed == [str(choice) for choice in choices]


def test_rank_uses_a_sample(prober: FakeProber) -> None:
    """Only as many photos as ``size`` are embedded."""
    rank(attempts_of("wxyz", 100), [BackboneChoice(name="a")], size=40)
    assert prober.photos == 40


@pytest.mark.usefixtures("prober")
def test_rank_raises_if_all_backbones_fail() -> None:
    """If no backbone can be used the error has the reason of each."""
    choices = [BackboneChoice(name="x"), BackboneChoice(name="y")]
    with pytest.raises(InvalidInput, match="x: no x; y: no y"):
        rank(attempts_of("xy", 4), choices)
    with pytest.raises(InvalidInput, match="no nonsense"):
        select(attempts_of("xy", 4), name="nonsense", image_size="auto", views="auto")


def test_select_tries_variants_of_the_best_backbones_only(prober: FakeProber) -> None:
    """All names, larger images for the best two, these pooled, then joined, then two views."""
    chosen, rows = select(attempts_of("xy", 4), image_size="auto", views="auto")
    assert prober.probed == [
        *("a", "b", "c"),
        *("b@288", "b@320", "a@288", "a@320"),
        *("a:pooled@320", "b:pooled@288"),
        "a+b@320",
        "a+b@320x2",
    ]
    assert str(chosen) == "a+b@320"  # two views gain only 0.2 points
    assert len(rows) == len(prober.probed)
    assert [notation(row) for row in rows if row.chosen] == ["a+b@320"]


def test_select_compares_the_tokens_of_vision_transformers(prober: FakeProber) -> None:
    """A name with :auto has a trial for each embedding; the cheaper one is kept without a gain."""
    for suffix, wrong in (("", 90), (":mean", 60), (":cls-mean", 58)):
        vit = trial(f"hf/local-dir:vit{suffix}", 9, range(wrong))
        width = 2000 if suffix == ":cls-mean" else 1000
        prober.trials[str(vit.choice)] = replace(vit, row=replace(vit.row, width=width))
    chosen, rows = select(attempts_of("xy", 4), name="hf/local-dir:vit:auto")
    assert (str(chosen), len(rows)) == ("hf/local-dir:vit:mean", 3)
    assert prober.probed == ["hf/local-dir:vit:auto"]
    ranked, _ = rank(attempts_of("xy", 4), [BackboneChoice(name="hf/local-dir:vit:auto")])
    assert ranked == chosen
    with pytest.raises(InvalidInput, match="no tokens"):
        select(attempts_of("xy", 4), name="timm/resnet:auto")


def test_auto_tries_the_tokens_of_the_best_backbones(
    prober: FakeProber, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network without tokens has no row for them; the winner is tried pooled and joined."""
    monkeypatch.setattr(backbones, "available", lambda: ["timm/cnn", "timm/vit", "c"])
    for text, wrong in (("timm/vit", 70), ("timm/vit:cls", 40), ("timm/cnn", 80)):
        prober.trials[text] = trial(text, 9, range(wrong))
    chosen, rows = select(attempts_of("xy", 4))
    assert prober.probed == [
        *("timm/cnn", "timm/vit", "c", "timm/vit:auto", "timm/cnn:auto"),
        *("timm/vit:cls:pooled", "timm/cnn:pooled", "timm/vit:cls+timm/cnn@224"),
    ]
    assert str(chosen) == "timm/vit:cls"
    assert "timm/cnn:auto" not in {row.name for row in rows}


def test_select_joins_pooled_backbones_if_they_are_better(prober: FakeProber) -> None:
    """The best of each network is joined with another network, never with itself."""
    prober.trials["a:pooled@320"] = trial("a:pooled@320", 11, range(70))
    select(attempts_of("xy", 4), image_size="auto")
    assert prober.probed[-1] == "a:pooled+b@320"


def test_select_keeps_given_name_size_and_views(prober: FakeProber) -> None:
    """A named backbone is not replaced or joined; given size and views are not changed."""
    chosen, _ = select(attempts_of("xy", 4), name="a", image_size="auto")
    assert prober.probed == ["a", "a@288", "a@320"]
    assert str(chosen) == "a@288"
    prober.probed.clear()
    with pytest.raises(InvalidInput):
        select(attempts_of("xy", 4), image_size=288, views=2)
    assert prober.probed == ["a@288x2", "b@288x2", "c@288x2"]


@pytest.mark.usefixtures("prober")
def test_select_refuses_weights_without_a_name(tmp_path: Path) -> None:
    """A weights file belongs to one backbone."""
    with pytest.raises(InvalidInput, match="needs the name"):
        select(attempts_of("xy", 4), weights=tmp_path / "w.pth")


@pytest.mark.usefixtures("prober")
def test_explain_has_gain_and_cost() -> None:
    """The sentence has gain and relative cost, or says that no other backbone is better."""
    _, rows = rank(attempts_of("xy", 4), [BackboneChoice(name="a"), backbones.parse("a@288")])
    assert explain(rows) == (
        "a@288 is chosen: accuracy 0.920 at 9.0 ms per image on one core, which is +2.0 points"
        " for 1.8 times the cost of the cheapest, a@224 (accuracy 0.900 at 5.0 ms per image on one"
        " core)"
    )
    _, rows = rank(attempts_of("xy", 4), [BackboneChoice(name="a"), BackboneChoice(name="c")])
    assert explain(rows).startswith("a@224 is chosen: accuracy 0.900 at 5.0 ms")


@pytest.mark.parametrize("text", ["a@288", "a@288x2", "a@x2", "a+b@96x2", "a", "a:pooled@96"])
def test_notation_of_a_row_can_be_parsed(text: str) -> None:
    """The name in a row can be passed to --backbones, also for a backbone that failed."""
    choice = backbones.parse(text)
    row = replace(failed(text, "no").row, image_size=choice.image_size or 0)
    assert backbones.parse(notation(row)) == choice


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data folder with 12 pictures of each label."""
    for label in ("amber", "blue", "crimson"):
        folder = tmp_path / "data" / label
        folder.mkdir(parents=True)
        for index, content in enumerate(pictures(label, 12)):
            (folder / f"{index:02d}.png").write_bytes(content)
    return tmp_path / "data"


def export_of(name: str) -> tuple[bytes, BackboneInfo]:
    """Return the tiny backbone as the export of ``name``."""
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


def test_command_prints_json_with_all_rows(data: Path, tmp_path: Path) -> None:
    """--json prints one object with all rows; embeddings are stored in the cache."""
    for name in ("efficientnet_lite0", "efficientnet_lite1@64"):
        Exports(tmp_path / "cache").put(*export_of(name))
    wanted = "efficientnet_lite0, efficientnet_lite1@64, efficientnet_lite9"
    arguments = [str(data), "--backbones", wanted, "--cache", str(tmp_path / "cache")]
    done = CliRunner().invoke(command, [*arguments, "--sample", "30", "--json"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed["chosen"] in {"efficientnet_lite0", "efficientnet_lite1@64"}
    *working, broken = printed["backbones"]
    assert {row["name"] for row in working} == {"efficientnet_lite0", "efficientnet_lite1"}
    assert {row["width"] for row in working} == {tiny.WIDTH}
    assert all(row["accuracy"] > 0.8 and row["milliseconds"] > 0 for row in working)
    assert "unknown backbone 'efficientnet_lite9'" in broken["error"]
    assert (tmp_path / "cache" / FILE).stat().st_size > 0


def test_command_shows_a_table(data: Path, tmp_path: Path) -> None:
    """The command prints a table and a sentence; with --no-cache only exports are stored."""
    Repository(tmp_path / "repository").put_backbone(*export_of("efficientnet_lite0@64x2"))
    options = ["--repository", str(tmp_path / "repository"), "--no-cache"]
    backbone = ["--backbones", "efficientnet_lite0", "--image-size", "64", "--views", "2"]
    done = CliRunner().invoke(command, [str(data), *backbone, *options])
    assert done.exit_code == 0, done.output
    assert "accuracy (95 %)" in done.stdout
    assert "efficientnet_lite0@16x2 is chosen" in done.stdout
    assert [path.name for path in (tmp_path / "repository").iterdir()] == ["backbones"]


def test_command_refuses_an_invalid_size(data: Path) -> None:
    """A size out of bounds is an error of the command, not of a row."""
    done = CliRunner().invoke(command, [str(data), "--backbones", "efficientnet_lite0@9999"])
    assert isinstance(done.exception, InvalidInput)
    assert "9999" in str(done.exception)
