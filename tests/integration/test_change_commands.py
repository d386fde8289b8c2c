"""Commands that change a model, and commands that show operations and history."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from support.pictures import pictures
from support.servers import AddClass, Command, Running

from topwork import Client
from topwork.bundle.store import Repository

LABELS = ["amber", "blue", "crimson", "green"]
VIOLETS = [(f"violet-{n}.png", content) for n, content in enumerate(pictures("violet", 12))]
BLUES = pictures("blue", 20)
"""The pictures on which the model was fitted."""


def written(folder: Path, contents: list[bytes]) -> Path:
    """Write images as files and return the folder."""
    folder.mkdir()
    for number, content in enumerate(contents):
        (folder / f"{number:02}.png").write_bytes(content)
    return folder


def row(output: str) -> dict[str, Any]:
    """Return the single JSON object of an output."""
    (line,) = output.splitlines()
    parsed: dict[str, Any] = json.loads(line)
    return parsed


def test_add_examples(topwork: Command, model: str, tmp_path: Path) -> None:
    """`add-examples` adds the new photos and names the duplicates."""
    photos = written(tmp_path / "blue", [*BLUES[:2], *pictures("blue", 6, start=200)])
    options = ("--model", model, "--label", "blue", "--json")
    status, output, _ = topwork("add-examples", *options, photos)
    answer = row(output)
    assert (status, answer["kind"], answer["revision"]) == (0, "add_examples", 2)
    assert answer["images_used"] == 6
    assert [Path(image["image"]).name for image in answer["skipped"]] == ["00.png", "01.png"]


def test_add_examples_of_known_photos(topwork: Command, model: str, tmp_path: Path) -> None:
    """If the class has all photos already, text and JSON report that nothing changed."""
    photos = written(tmp_path / "blue", BLUES[:2])
    options = ("--model", model, "--label", "blue")
    status, output, _ = topwork("add-examples", *options, photos)
    assert status == 0
    assert "nothing to do: revision 1 serves" in output
    _, output, _ = topwork("add-examples", *options, "--json", photos)
    assert (row(output)["revision"], row(output)["comparison"]) == (1, None)


def test_add_classes(topwork: Command, client: Client, model: str, tmp_path: Path) -> None:
    """`add-classes` adds a folder of folders; unreadable files and other files are named."""
    (data := tmp_path / "data").mkdir()
    written(data / "violet", pictures("violet", 12))
    written(data / "blue", [*BLUES[:2], *pictures("blue", 6, start=200)])
    (data / "blue" / "notes.txt").write_text("x")
    options = ("--model", model)
    status, output, errors = topwork("add-classes", *options, data)
    assert status == 0
    assert "blue, violet added or extended: revision 2" in output
    assert "recall of blue" in output
    assert "recall of violet" in output
    assert "notes.txt" in errors
    assert client.model(model).serving_revision.labels[-1] == "violet"
    _, output, _ = topwork("add-classes", *options, "--json", data)
    answer = row(output)
    assert (answer["revision"], answer["images_used"], answer["kind"]) == (2, 0, "add_classes")
    assert {skipped["label"] for skipped in answer["skipped"]} == {"blue", "violet"}
    (empty := tmp_path / "empty").mkdir()
    status, _, errors = topwork("add-classes", *options, empty)
    assert status != 0
    assert "no labelled photo" in errors or "no photo" in errors


def test_remove_class(topwork: Command, client: Client, model: str) -> None:
    """`remove-class` prints the new revision and its accuracy."""
    status, output, _ = topwork("remove-class", "--model", model, "--label", "blue")
    assert status == 0
    assert "blue removed: revision 2" in output
    assert "accuracy on the old labels" in output
    assert "blue" not in client.model(model).serving_revision.labels


def test_rename_class(topwork: Command, client: Client, model: str) -> None:
    """`rename-class` prints both labels."""
    options = ("--model", model, "--label", "blue", "--new-label", "[b]azure")
    status, output, _ = topwork("rename-class", *options)
    assert status == 0
    assert "blue renamed to [b]azure: revision 2" in output
    assert "[b]azure" in client.model(model).serving_revision.labels


def test_retrain(topwork: Command, client: Client, model: str) -> None:
    """`retrain` takes a kind of head; an unknown kind is a usage error."""
    status, output, _ = topwork("retrain", "--model", model, "--head", "ridge", "--json")
    assert (status, row(output)["revision"]) == (0, 2)
    assert client.model(model).serving_revision.head.kind == "ridge"
    status, _, errors = topwork("retrain", "--model", model, "--head", "oracle")
    assert status == 2
    assert "oracle" in errors


def test_validate_only_changes_nothing(topwork: Command, client: Client, model: str) -> None:
    """`--validate-only` prints that nothing changed, has no revision, and publishes none."""
    options = ("--model", model, "--label", "blue", "--validate-only")
    status, output, _ = topwork("remove-class", *options)
    assert status == 0
    assert "blue removed: nothing was changed" in output
    _, output, _ = topwork("remove-class", *options, "--json")
    answer = row(output)
    assert (answer["validate_only"], answer["revision"]) == (True, 0)
    assert answer["labels"] == ["amber", "crimson", "green"]
    assert list(client.model(model).revisions) == [1]


def test_a_rejected_change_exits_with_1(topwork: Command, model: str, tmp_path: Path) -> None:
    """The comparison is printed, as a table or JSON; the exit status is 1."""
    photos = written(tmp_path / "violet", BLUES)
    options = ("--model", model, "--label", "violet")
    status, output, errors = topwork("add-class", *options, photos)
    assert status == 1
    assert "accuracy on the old labels" in output
    assert "error: revision 2 was rejected: " in errors
    status, output, _ = topwork("add-class", *options, "--json", photos)
    answer = row(output)
    assert (status, answer["reason"]) == (1, "GATE_FAILED")
    assert answer["comparison"]["taught"][0]["label"] == "violet"
    assert "rejected" in answer["error"]


def test_options_set_the_gate(topwork: Command, model: str, tmp_path: Path) -> None:
    """The gate's options let the same photos through, or refuse them for their conflicts."""
    photos = written(tmp_path / "violet", BLUES)
    options = ("--model", model, "--label", "violet", "--json")
    status, output, _ = topwork("add-class", *options, "--max-conflicts", 3, photos)
    assert (status, row(output)["reason"]) == (1, "LABEL_CONFLICTS")
    anything = ("--max-old-class-drop", 1, "--min-new-class-recall", 0)
    status, output, _ = topwork("add-class", *options, *anything, photos)
    answer = row(output)
    assert (status, answer["revision"]) == (0, 2)
    assert {conflict["label"] for conflict in answer["conflicts"]} == {"blue"}


def test_a_change_of_another_expected_revision_is_an_error(topwork: Command, model: str) -> None:
    """`--expected-revision` of a revision that does not serve is a one-line error."""
    options = ("--model", model, "--label", "blue", "--expected-revision", 7)
    status, output, errors = topwork("remove-class", *options)
    assert (status, output) == (1, "")
    assert errors.splitlines()[-1] == f"error: model {model!r} serves revision 1, not 7"


def test_rollback(topwork: Command, client: Client, add_class: AddClass, model: str) -> None:
    """`rollback` makes the previous or the named revision serve."""
    add_class(model, "violet", VIOLETS)
    status, output, _ = topwork("rollback", "--model", model, "--json")
    assert (status, row(output)) == (0, {"model": model, "serving": 1, "pinned": []})
    status, output, _ = topwork("rollback", "--model", model, "--revision", 2)
    assert (status, output) == (0, f"{model}: revision 2 serves; pinned: none\n")
    assert client.model(model).serving_revision.revision == 2


def test_pin_revision(topwork: Command, client: Client, model: str) -> None:
    """`pin-revision` pins a revision and unpins it with --unpin."""
    options = ("--model", model, "--revision", 1, "--json")
    status, output, _ = topwork("pin-revision", *options)
    assert (status, row(output)["pinned"]) == (0, [1])
    status, output, _ = topwork("pin-revision", *options, "--unpin")
    assert (status, row(output)["pinned"]) == (0, [])
    assert not client.model(model).pinned_revisions


def test_report(topwork: Command, server: Running, model: str, tmp_path: Path) -> None:
    """`report` writes the page that the fit wrote; a revision that is not there is an error."""
    out = tmp_path / "report.html"
    status, _, errors = topwork("report", model, "--out", str(out))
    assert (status, errors) == (0, f"report of revision 1 of {model} in {out}\n")
    stored = Repository(server.repository)
    assert out.read_bytes() == stored.report(stored.manifest(model, 1))
    status, _, errors = topwork("report", model, "--revision", "7", "--out", str(out))
    assert status == 1
    assert "there is no revision" in errors
    status, _, errors = topwork("report", model, "--out", str(tmp_path / "none" / "report.html"))
    assert status == 1
    assert "there is no folder" in errors


def test_history(topwork: Command, client: Client, add_class: AddClass, model: str) -> None:
    """`history` has revisions and moves, newest first, and the reason of a rejection."""
    operation = add_class(model, "violet", VIOLETS)
    assert add_class(model, "teal", [(f"{n}.png", blue) for n, blue in enumerate(BLUES)]).error.code
    client.rollback(model)
    client.pin_revision(model, 2)
    status, output, _ = topwork("history", "--json", model)
    history = row(output)
    assert (status, history["model"], history["serving"]) == (0, model, 1)
    revisions = history["revisions"]
    changes = [(each["revision"], each["change"], each["parent"]) for each in revisions]
    assert changes == [(3, "add_class", 2), (2, "add_class", 1), (1, "fit", 0)]
    assert [bool(each["rejection"]) for each in revisions] == [True, False, False]
    assert [each["pinned"] for each in revisions] == [False, True, False]
    assert revisions[1]["operation"] == operation.name
    moves = [(move["cause"], move["previous"], move["revision"]) for move in history["moves"]]
    assert moves == [("rollback", 2, 1), ("add_class", 1, 2), ("fit", 0, 1)]
    status, output, _ = topwork("history", model)
    assert status == 0
    assert "serves" in output
    assert "revision 3 was rejected: " in output


def test_operations_list(topwork: Command, add_class: AddClass, model: str) -> None:
    """`operations list` shows the operations that match a filter, with their state."""
    good = add_class(model, "violet", VIOLETS)
    bad = add_class(model, "teal", VIOLETS[:2])
    wanted = f"model = models/{model}"
    status, output, _ = topwork("operations list", "--filter", wanted, "--json")
    first, second = map(json.loads, output.splitlines())
    assert status == 0
    assert (first["operation"], first["state"], first["error"]) == (good.name, "done", None)
    assert (second["operation"], second["state"]) == (bad.name, "TOO_FEW_IMAGES")
    assert "2 usable images" in second["error"]
    assert (first["kind"], first["label"], first["done"]) == ("add_class", "violet", True)
    assert first["seconds"] > 0
    status, output, _ = topwork("operations list", "--filter", wanted)
    assert status == 0
    assert "violet" in output
    status, _, errors = topwork("operations list", "--filter", "colour = blue")
    assert status == 1
    assert "error: filter 'colour = blue' cannot be used" in errors


@pytest.mark.parametrize("columns", ["80", ""])
def test_tables_do_not_truncate_names(
    topwork: Command, add_class: AddClass, model: str, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    """Names of operations and models stay whole in narrow terminals and in pipes."""
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    else:
        monkeypatch.delenv("COLUMNS", raising=False)
    operation = add_class(model, "violet", VIOLETS).name.removeprefix("operations/")
    _, listed, _ = topwork("operations list", "--filter", f"model = models/{model}")
    _, moves, _ = topwork("history", model)
    _, models, _ = topwork("models")
    _, header, *rows = ("", *listed.splitlines())
    assert [line.split()[:2] for line in rows if line[0] != " "] == [[operation, model]]
    assert operation in moves
    assert model in {line.split()[0] for line in models.splitlines()}
    assert all(len(line) <= 80 for line in [header, *rows]) or not columns
    assert "…" not in listed + moves + models


def test_operations_watch(topwork: Command, add_class: AddClass, model: str) -> None:
    """`operations watch` takes a name or id, and exits as the command that began the operation."""
    good = add_class(model, "violet", VIOLETS)
    status, output, _ = topwork("operations watch", "--json", good.name)
    assert (status, row(output)["revision"]) == (0, 2)
    status, output, _ = topwork("operations watch", good.name.removeprefix("operations/"))
    assert status == 0
    assert "violet added: revision 2" in output
    bad = add_class(model, "teal", VIOLETS[:2])
    status, output, _ = topwork("operations watch", "--json", bad.name)
    assert (status, row(output)["reason"]) == (1, "TOO_FEW_IMAGES")


def test_operations_cancel(topwork: Command, idle: Running) -> None:
    """`operations cancel` cancels a waiting operation; an unknown one is an error."""
    with Client(idle.address) as own:
        accepted = own.add_class("colours", "violet", VIOLETS)
        status, output, _ = topwork("operations cancel", accepted.name, address=idle.address)
        assert (status, output) == (0, "")
        *_, finished = own.watch(accepted.name)
    assert finished.raw.error.message == "cancelled on request"
    unknown = str(uuid.UUID(int=7))
    status, _, errors = topwork("operations cancel", unknown)
    assert status == 1
    assert unknown in errors


@pytest.mark.parametrize(
    "arguments",
    [
        ("add-examples", "--model", "colours", __file__),
        ("remove-class", "--model", "colours"),
        ("rename-class", "--model", "colours", "--label", "blue"),
        ("retrain",),
        ("rollback",),
        ("rollback", "--model", "colours", "--revision", "-1"),
        ("pin-revision", "--model", "colours"),
        ("retrain", "--model", "colours", "--max-old-class-drop", "2"),
        ("history",),
        ("operations watch",),
    ],
)
def test_a_wrong_command_line_exits_with_2(topwork: Command, arguments: tuple[str, ...]) -> None:
    """Missing or impossible arguments are a usage error."""
    status, output, errors = topwork(*arguments)
    assert (status, output) == (2, "")
    assert "Usage: " in errors
