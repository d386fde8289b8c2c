"""The console in headless Chromium: a model of four labels learns a fifth, in two ways."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support import browsers, kinds, servers, tiny
from support.kinds import AUDIO, TEXT
from support.pictures import picture
from support.servers import Running
from support.texts import TOPICS

from topwork.access import tokens
from topwork.bundle.store import Repository

DRIVERS = Path(__file__).parents[1] / "support"
PACKAGES = (browsers.PLAYWRIGHT, "axe-core@4.14.1")
ATTACK = '<img src=x onerror="window.hacked=1">'
FORMULA = f'=1+1,"x"{ATTACK}'
ROLES = ("classify", "train", "admin")


def fill(folder: Path, colour: str, count: int, *, first: int = 100, name: str = "") -> Path:
    """Make a folder of pictures of a colour."""
    folder.mkdir(parents=True)
    for number in range(first, first + count):
        (folder / f"{name or colour}-{number}.png").write_bytes(picture(colour, number))
    return folder


@contextmanager
def serving(
    folder: Path, repository: Repository, models: str = "'colours*', 'earlier'"
) -> Iterator[tuple[Running, dict[str, str]]]:
    """Serve a repository; yield the server and a token of each role for the ``models``."""
    browsers.install(folder, *PACKAGES)
    made = {role: tokens.make() for role in ROLES}
    access = folder / "access.toml"
    access.write_text(
        "".join(
            f"[principals.{role}]\ntokens = ['{token.entry}']\n{role} = [{models}]\n"
            for role, token in made.items()
        )
    )
    with servers.running(repository.root, access=str(access), http_port="127.0.0.1:0") as server:
        yield server, {role: token.token for role, token in made.items()}


def drive(name: str, folder: Path, server: Running, **given: Any) -> Any:
    """Return what a driver found, after checks of what must never go wrong."""
    arguments = (f"http://{server.http}/", json.dumps(given))
    found = browsers.drive(DRIVERS / name, folder, *arguments)
    assert found["problems"] == []
    assert found["hacked"] is None
    assert found["hosts"] == [server.http]
    assert {name: found for name, found in found["violations"].items() if found} == {}
    assert found["wide"] == []
    return found


@browsers.needs_browser
def test_console_tells_the_story(tmp_path: Path) -> None:
    """All tasks work on a phone's screen, by each role, with hostile names, without violations."""
    photos = tmp_path / "photos"
    fill(photos / "both" / ATTACK, "zircon", 8)
    fill(photos / "both" / "white", "white", 8)
    attack = photos / f"{ATTACK}.png"
    attack.write_bytes(picture("green", 90))
    violet = photos / "violet.png"
    violet.write_bytes(picture("violet", 91))
    repository = tiny.repository(tmp_path / "repository")
    # Without examples.npz, as earlier releases published.
    tiny.publish_copy(repository, repository.manifest("colours", 1), model="earlier")
    repository.set_serving("earlier", 1, why="fit")
    with serving(tmp_path, repository) as (server, given):
        folders = {
            "violet": str(fill(photos / "violet", "violet", 12, name=FORMULA)),
            "sea": str(fill(photos / "sea", "blue", 20, first=0)),
            "both": str(photos / "both"),
        }
        found = drive(
            "console.mjs",
            tmp_path,
            server,
            tokens=given,
            folders=folders,
            violet=str(violet),
            attack=str(attack),
        )
    assert found["before"] == []
    assert found["refused"]
    everything = [
        "Classify", "Teach", "Review", "Examples", "Report", "Revisions", "Model", "Operations"
    ]  # fmt: skip
    assert found["admin"] == found["train"]["views"] == everything
    assert found["classify"]["views"] == ["Classify", "Revisions"]
    assert found["train"]["buttons"] == found["classify"]["buttons"] == []

    assert found["attackFile"] == ["green", f"{ATTACK}.png: answered by revision 1."]
    assert found["nearest"] == ["green"] * 5
    assert not found["explained"].startswith("Explaining")
    assert "The gate would let this revision serve." in found["check"]
    assert "violet" in found["check"]
    assert "Revision 2 serves." in found["published"]
    assert found["dropped"] == "violet"
    assert "The gate would reject this revision." in found["rejected"]
    assert found["folders"] == [ATTACK, "white"]
    assert "Revision 4 serves." in found["both"]
    assert ATTACK in found["both"]
    assert ATTACK in found["examples"]
    check_report(found)
    assert found["html"] == repository.report(repository.manifest("colours", 6)).decode()
    assert found["revisions"][0].startswith("Revision 6")
    assert found["revisions"][-1] == "Revision 1"
    assert found["rolledBack"] == "Revision 1servespinned"
    assert "add classes: " in "".join(found["operations"])


def check_report(found: dict[str, Any]) -> None:
    """Check what the page Report showed and saved, and the comparison of two revisions."""
    assert found["cell"] == ["blue predicted as violet", 1]
    assert found["returned"] == "1 photo of blue predicted as violet"
    assert found["near"] == ["The photo, and those around it", 12]
    assert found["walked"] != found["walkedFurther"]
    assert "Recall (sensitivity)" in found["threshold"]
    assert "9 of 9" in found["threshold"]
    assert found["slid"] == "0.51"
    head, *rows = csv.reader(io.StringIO(found["csv"].removeprefix("\ufeff"), newline=""))
    assert head[:3] == ["name", "digest", "label"]
    assert len(rows) == found["listed"]
    (moved,) = (row for row in rows if (row[2], row[4]) == ("blue", "violet"))
    assert moved[0].startswith(f"'{FORMULA}-1")
    assert found["missing"].startswith("An earlier release made revision 1")
    assert found["retrained"] == "2 (serves)"
    assert found["compared"] == "Revisions 6 and 2, each on its own images"


@browsers.needs_browser
def test_console_reviews_and_manages(tmp_path: Path) -> None:
    """Answers are corrected, a group becomes a label, and labels and models come and go."""
    (tmp_path / "photos").mkdir()
    strangers = fill(tmp_path / "photos" / "strangers", "violet", 8, first=200)
    (strangers / "violet-203.png").unlink()  # the model takes it for blue, without a doubt
    wrong = tmp_path / "photos" / "wrong.png"
    wrong.write_bytes(picture("crimson", 91))
    repository = tiny.repository(tmp_path / "repository")
    with serving(tmp_path, repository) as (server, given):
        found = drive(
            "console_review.mjs",
            tmp_path,
            server,
            tokens=given,
            strangers=sorted(str(path) for path in strangers.iterdir()),
            wrong=str(wrong),
            attack=ATTACK,
        )
    assert found["offered"] == 0
    assert found["off"] == "The queue is off: no image is kept."
    assert found["classify"] == ["Classify", "Revisions"]
    assert f"waits as {ATTACK} in the review queue" in found["corrected"]
    assert "Review it" not in found["corrected"]
    assert f"corrected to {ATTACK}" in found["tiles"]
    assert found["group"].startswith(f"{found['looked']} images that look alike")
    assert found["question"] == f"Teach {found['looked']} images as {ATTACK}?"
    assert "Revision 2 serves." in found["taught"]
    assert ATTACK in found["taught"]
    assert "Revision 3 serves." in found["correction"]

    assert any(label.startswith(ATTACK) for label in found["labels"])
    assert len(found["labels"]) == 5
    assert found["trainSections"] == ["5 labels of colours", "New model"]
    assert "Revision 4 serves." in found["renamed"]
    assert "The gate would let this revision serve." in found["checked"]
    assert [label.split()[0] for label in found["left"]] == ["amber", "blue", "crimson", "green"]
    assert ATTACK in found["refused"]
    assert found["models"] == ["colours", "colours2", "colours3"]
    assert found["draft"].startswith("models/colours3 does not serve yet")
    assert found["typed"]
    assert found["deleted"] == ["colours", "colours2"]
    assert found["restored"] == ["colours", "colours2", "colours3"]


@browsers.needs_browser
def test_console_shows_and_learns_texts(tmp_path: Path) -> None:
    """A text is typed, dropped, taught, listed and reviewed; whatever it has stays text."""
    texts = tmp_path / "texts"
    (texts / "chess").mkdir(parents=True)
    contents = TEXT.contents("chess", 12, 0)
    for number, content in enumerate(contents):
        attacked = content + f" {ATTACK}".encode() if number == 0 else content
        (texts / "chess" / f"{number}.txt").write_bytes(attacked)
    fresh = texts / f"{ATTACK}.txt"
    fresh.write_text("chord violin choir melody opera tempo " * 5 + ATTACK)
    sound = texts / f"{ATTACK}.wav"
    sound.write_bytes(AUDIO.contents(AUDIO.labels[1], 1, 100)[0])
    broken = texts / "broken.txt"
    broken.write_bytes(b"salt \xff")
    repository = kinds.repository(tmp_path / "repository")
    with serving(tmp_path, repository, "'topics*', 'points', 'sounds'") as (server, given):
        found = drive(
            "console_texts.mjs",
            tmp_path,
            server,
            token=given["admin"],
            typed=TEXT.contents("sailing", 1, 100)[0].decode(),
            fresh=str(fresh),
            broken=str(broken),
            taught=str(texts / "chess"),
            lines=[content.decode() for content in TEXT.contents("chess", 3, 40)],
            sound=str(sound),
            strangers=[content.decode() for content in TEXT.contents("chess", 6, 200)],
        )
    assert found["typed"] == "sailing"
    assert found["near"][0][:2] == ["sailing"] * 2
    assert [*map(topic_of, found["near"][1])] == found["near"][0]
    assert "only images have one, not inputs of the kind text" in found["explained"]
    assert found["fresh"] == "music"
    assert ATTACK in found["given"]
    assert found["broken"] == "broken.txt is not UTF-8."
    assert found["proposed"] == "chess"
    assert found["hint"] == "12 texts · a new label"
    assert "The gate would let this revision serve." in found["check"]
    assert "Revision 2 serves." in found["published"]
    assert found["pasted"] == "3 texts · a label of the model, which gets more texts"
    assert "Revision 3 serves." in found["lines"]
    assert len(found["examples"]) == 15
    assert sum(ATTACK in text for text in found["examples"]) == 1
    assert found["cell"][1] >= 1
    assert topic_of(found["cell"][0])
    assert found["queued"] >= 1
    assert {topic_of(text) for text in found["candidates"]} == {"chess"}
    assert "Revision 4 serves." in found["taught"]
    assert "takes embeddings, which programs compute" in found["points"]
    assert found["sound"] == AUDIO.labels[1]
    assert found["players"] == 5
    assert found["seconds"] > 0
    assert found["sounds"] == 48


def topic_of(text: str) -> str:
    """Return the topic of most of a text's words."""
    counts = {topic: sum(word in text for word in words) for topic, words in TOPICS.items()}
    return max(counts, key=lambda topic: counts[topic])
