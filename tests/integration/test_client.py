"""The Python clients and the command line, against a running server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from google.longrunning import operations_pb2
from support import tiny
from support.pictures import picture, pictures
from support.servers import Command, Running, Teach, eventually, failure

from topwork import AsyncClient, CallFailed, Client, Credentials, progress, result
from topwork.cli import options
from topwork.cli.classify import _interrupts
from topwork.errors import InvalidInput
from topwork.runtime.interrupts import STATUS

LABELS = ["amber", "blue", "crimson", "green"]
VIOLETS = [(f"violet-{n}.png", content) for n, content in enumerate(pictures("violet", 12))]

METRICS = {
    "images", "folds", "accuracy", "accuracy_low", "accuracy_high", "log_loss", "ece", "unknown",
    "per_class",
}  # fmt: skip
COMPARISON = {
    "images", "accuracy_before", "accuracy_after", "drop", "drop_low", "drop_high",
    "calibration_error_before", "calibration_error_after", "labels", "taught", "confusions",
}  # fmt: skip


def written(folder: Path, images: list[tuple[str, bytes]]) -> Path:
    """Write images as files and return the folder."""
    folder.mkdir()
    for name, content in images:
        (folder / name).write_bytes(content)
    return folder


def rows(output: str) -> list[dict[str, Any]]:
    """Return the JSON objects of an output, one a line."""
    return [json.loads(line) for line in output.splitlines()]


def test_blocking_and_asyncio_agree(client: Client, server: Running, model: str) -> None:
    """Each method of the two clients gives the same."""
    photos = pictures("blue", 3, start=40)
    request_id = str(uuid.uuid4())

    async def ask() -> list[Any]:
        async with AsyncClient(server.address) as own:
            accepted = await own.add_class(model, "violet", VIOLETS, request_id=request_id)
            states = [state async for state in own.watch(accepted.name)]
            return [
                (await own.classify(model, photos, revision=1, top_k=2)).results,
                states[-1],
                await own.add_class(model, "violet", VIOLETS, request_id=request_id),
                await own.model(model),
                [one async for one in own.models()],
                [one async for one in own.revisions(model)],
                [one async for one in own.operations(f"model = models/{model}")],
            ]

    from_asyncio = asyncio.run(ask())
    accepted = client.add_class(model, "violet", VIOLETS, request_id=request_id)
    assert from_asyncio == [
        client.classify(model, photos, revision=1, top_k=2).results,
        list(client.watch(accepted.name))[-1],
        accepted,
        client.model(model),
        list(client.models()),
        list(client.revisions(model)),
        list(client.operations(f"model = models/{model}")),
    ]


CALLS: dict[str, Callable[[Client], Any]] = {
    "classify": lambda client: client.classify("unknown", [b"photo"]),
    "classify_stream": lambda client: list(client.classify_stream("unknown", [b"photo"])),
    "add_class": lambda client: client.add_class("unknown", "violet", VIOLETS),
    "add_examples": lambda client: client.add_examples("unknown", "violet", VIOLETS),
    "remove_class": lambda client: client.remove_class("unknown", "violet"),
    "rename_class": lambda client: client.rename_class("unknown", "violet", "mauve"),
    "retrain": lambda client: client.retrain("unknown"),
    "rollback": lambda client: client.rollback("unknown"),
    "pin_revision": lambda client: client.pin_revision("unknown", 1),
    "revisions": lambda client: list(client.revisions("unknown")),
    "cancel": lambda client: client.cancel("operations/unknown"),
    "watch": lambda client: list(client.watch("operations/unknown")),
    "model": lambda client: client.model("unknown"),
}
LISTS: dict[str, Callable[[Client], Any]] = {
    "models": lambda client: list(client.models()),
    "operations": lambda client: list(client.operations()),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_failed_call_says_why(client: Client, call: str) -> None:
    """Every method raises CallFailed with code, reason and text of the server's status."""
    error = failure(lambda: CALLS[call](client))
    assert (error.code, error.reason, error.retry_after) == ("NOT_FOUND", "NOT_FOUND", 0)
    assert str(error) == error.status.message
    assert "unknown" in str(error)


@pytest.mark.parametrize("call", CALLS | LISTS)
def test_a_server_that_is_not_there(nobody: str, call: str) -> None:
    """Every method raises CallFailed UNAVAILABLE when nobody listens, blocking or not."""
    with Client(nobody) as own:
        error = failure(lambda: (CALLS | LISTS)[call](own))
    assert (error.code, error.reason) == ("UNAVAILABLE", "UNAVAILABLE")

    async def ask() -> None:
        async with AsyncClient(nobody) as own:
            calls: dict[str, Callable[[], Awaitable[object]]] = {
                "classify": lambda: own.classify("x", [b"photo"]),
                "classify_stream": lambda: exhaust(own.classify_stream("x", [b"photo"])),
                "add_class": lambda: own.add_class("x", "violet", VIOLETS),
                "add_examples": lambda: own.add_examples("x", "violet", VIOLETS),
                "remove_class": lambda: own.remove_class("x", "violet"),
                "rename_class": lambda: own.rename_class("x", "violet", "mauve"),
                "retrain": lambda: own.retrain("x"),
                "rollback": lambda: own.rollback("x"),
                "pin_revision": lambda: own.pin_revision("x", 1),
                "revisions": lambda: exhaust(own.revisions("x")),
                "operations": lambda: exhaust(own.operations()),
                "cancel": lambda: own.cancel("operations/x"),
                "watch": lambda: exhaust(own.watch("operations/x")),
                "model": lambda: own.model("x"),
                "models": lambda: exhaust(own.models()),
            }
            await calls[call]()

    assert failure(lambda: asyncio.run(ask())).code == "UNAVAILABLE"


async def exhaust(answers: Any) -> None:
    """Take all that comes."""
    async for _ in answers:
        pass


def test_a_client_finds_a_server_soon_after_it_opens_its_port() -> None:
    """While nobody answers it tries again every 2 s or sooner, not after ever longer pauses."""
    tries: list[socket.socket] = []

    def refuse() -> None:
        with contextlib.suppress(OSError):  # it is closed
            while connection := listening.accept()[0]:
                connection.close()
                tries.append(connection)

    with ThreadPoolExecutor() as threads, socket.create_server(("127.0.0.1", 0)) as listening:
        threads.submit(refuse)
        with Client(f"127.0.0.1:{listening.getsockname()[1]}") as own:
            error = failure(lambda: own.wait_until_ready(4.0))
        listening.shutdown(socket.SHUT_RDWR)
    assert len(tries) > 4
    assert "something listens there, but" in str(error)


def test_an_overload_says_when_to_retry(idle: Running) -> None:
    """Of many large requests at once some are refused, each with a time; others are answered."""
    large = picture("blue", 1, size=(1200, 900))

    async def ask() -> list[Any]:
        async with AsyncClient(idle.address) as own:
            calls = (own.classify("colours", [large] * 8) for _ in range(6))
            return list(await asyncio.gather(*calls, return_exceptions=True))

    ends = asyncio.run(ask())
    refused = [end for end in ends if isinstance(end, CallFailed)]
    assert 0 < len(refused) < 6
    for error in refused:
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert 0 < error.retry_after < 60


def test_a_large_upload_goes_in_several_messages(client: Client, teach: Teach, model: str) -> None:
    """More bytes than fit in one message are uploaded all the same, each image under its name."""
    names = [f"photo-{n}" for n in range(12)]
    padded = [
        (name, content + bytes(800_000)) for name, (_, content) in zip(names, VIOLETS, strict=True)
    ]
    length = sum(len(content) for _, content in padded)
    assert length > 2 * client.model(model).limits.max_message_bytes
    response = result(teach(model, "violet", [*padded, ("the last", b"no photo")]))
    assert response.images_used == 12
    assert [one.display_name for one in response.skipped_images] == ["the last"]


def test_one_client_serves_many_threads(client: Client) -> None:
    """A blocking client may be used from several threads at once."""
    barrier = threading.Barrier(4)

    def ask(label: str) -> str:
        barrier.wait(60)
        answer = client.classify("colours", [picture(label, 45)])
        return str(answer.results[0].predictions[0].label)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, LABELS)) == LABELS


def test_what_is_no_finished_operation_has_no_result(idle: Running) -> None:
    """Asking an unfinished operation for its result, or another message for progress, is told."""
    with Client(idle.address) as own:
        accepted = own.add_class("colours", "violet", VIOLETS)
    with pytest.raises(ValueError, match="is not a finished change of a model"):
        result(accepted)
    with pytest.raises(ValueError, match="is not a change of a model"):
        progress(operations_pb2.Operation(name="operations/other"))


def torn() -> Iterator[tuple[str, bytes]]:
    """Yield photos, then fail as a disk does."""
    yield from VIOLETS
    raise OSError(5, "Input/output error")


def test_what_images_raise_is_raised(client: Client, server: Running, model: str) -> None:
    """An upload whose images fail is that failure to both clients, and no operation."""

    async def upload() -> None:
        async with AsyncClient(server.address) as own:
            await own.add_class(model, "violet", torn())

    for add in (
        lambda: client.add_class(model, "violet", torn()),
        lambda: client.add_examples(model, "blue", torn()),
        lambda: asyncio.run(upload()),
    ):
        with pytest.raises(OSError, match="Input/output error"):
            add()
    assert list(client.operations(f"model = models/{model}")) == []


def test_a_cancelled_upload_is_cancelled(server: Running, model: str) -> None:
    """For asyncio a cancelled task stays cancelled, even where its images failed by then."""

    async def upload() -> None:
        async with AsyncClient(server.address) as own:

            def cancelling() -> Iterator[tuple[str, bytes]]:
                task.cancel()
                yield from torn()

            task = asyncio.create_task(own.add_class(model, "violet", cancelling()))
            await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(upload())


def test_uploaded_names_need_not_be_utf_8(teach: Teach, model: str) -> None:
    """As ``Path.name`` may not be; such a name is escaped."""
    finished = teach(model, "violet", [*VIOLETS, ("torn\udcff.png", b"no photo")])
    (skipped,) = result(finished).skipped_images
    assert skipped.display_name == "torn\\xff.png"


def test_long_paths_keep_their_ends(teach: Teach, model: str) -> None:
    """Two photos of one deep folder differ in the end of their names."""
    deep = "folder/" * 40
    photos = [(f"{deep}{name}.jpg", b"no photo") for name in "ab"]
    skipped = result(teach(model, "violet", [*VIOLETS, *photos])).skipped_images
    assert [one.display_name[-8:] for one in skipped] == ["er/a.jpg", "er/b.jpg"]


def test_classify_tells_each_image(topwork: Command, tmp_path: Path) -> None:
    """`classify --json` has one object a file, with all that is documented."""
    folder = written(tmp_path / "photos", [(f"{one}.png", picture(one, 45)) for one in LABELS])
    status, output, _ = topwork("classify", "--model", "colours", "--json", "--top-k", 2, folder)
    assert status == 0
    answers = rows(output)
    keys = {"image", "revision", "predictions", "unknown_probability", "is_unknown", "error"}
    assert [set(one) for one in answers] == [keys] * 4
    assert all(0 <= one["unknown_probability"] <= 1 for one in answers)
    assert [one["image"] for one in answers] == [str(folder / f"{one}.png") for one in LABELS]
    assert {one["revision"] for one in answers} == {1}
    assert {one["error"] for one in answers} == {None}
    for one, label in zip(answers, LABELS, strict=True):
        first, second = one["predictions"]
        assert set(first) == {"label", "probability"}
        assert first["label"] == label
        assert 1 >= first["probability"] >= second["probability"] >= 0


def test_classify_goes_on_after_a_bad_file(topwork: Command, tmp_path: Path) -> None:
    """Files that are missing, no image or a directory's are errors in their rows; status 1."""
    note = tmp_path / "note.txt"
    note.write_text("no photo")
    photo = tmp_path / "photo.png"
    photo.write_bytes(picture("green", 45))
    missing = tmp_path / "missing.png"
    unreadable = Path("/proc/self/mem")  # opens, but cannot be read, even by root
    status, output, _ = topwork(
        "classify", "--model", "colours", "--json", note, missing, unreadable, photo
    )
    assert status == 1
    first, second, third, last = rows(output)
    assert [one["predictions"] for one in (first, second, third)] == [[], [], []]
    assert [one["revision"] for one in (first, second, third, last)] == [1, None, None, 1]
    assert "is none of JPEG" in first["error"]
    assert second["error"] == "the file cannot be read: No such file or directory"
    assert third["error"].startswith("the file cannot be read: ")
    assert last["predictions"][0]["label"] == "green"


def test_classify_asks_for_more_than_one_request_takes(topwork: Command, tmp_path: Path) -> None:
    """More files than a request may hold are asked in several, in the order of their names."""
    photos = [(f"{n:02}.png", picture(LABELS[n % 4], 100 + n)) for n in range(20)]
    status, output, _ = topwork(
        "classify", "--model", "colours", "--json", written(tmp_path / "photos", photos)
    )
    assert status == 0
    found = [one["predictions"][0]["label"] for one in rows(output)]
    assert found == [LABELS[n % 4] for n in range(20)]


def test_unreadable_files_keep_their_places(topwork: Command, tmp_path: Path) -> None:
    """Among many photos, first and last too, what cannot be read is in its row."""
    photos = [(f"{n:03}.png", picture(LABELS[n % 4], n)) for n in range(100)]
    folder = written(tmp_path / "photos", photos)
    broken = [0, 1, 50, 98, 99]
    for n in broken:
        (folder / f"{n:03}.png").unlink()
        (folder / f"{n:03}.png").symlink_to("/proc/self/mem")
    status, output, _ = topwork("classify", "--model", "colours", "--json", folder)
    found = rows(output)
    assert status == 1
    assert [one["image"] for one in found] == [str(folder / name) for name, _ in photos]
    assert [n for n, one in enumerate(found) if one["error"] is not None] == broken
    good = [(n, one) for n, one in enumerate(found) if one["error"] is None]
    assert all(one["predictions"][0]["label"] == LABELS[n % 4] for n, one in good)


def test_only_unreadable_files(topwork: Command, tmp_path: Path) -> None:
    """When no file can be read there are rows, and status 1."""
    missing = [tmp_path / f"{n}.png" for n in range(30)]
    status, output, _ = topwork("classify", "--model", "colours", "--json", *missing)
    assert (status, len(rows(output))) == (1, 30)


def many(folder: Path, count: int) -> Path:
    """Return a new folder of ``count`` files with the same photo in them."""
    photo = folder / "photo.png"
    photo.write_bytes(picture("green", 45))
    photos = folder / "photos"
    photos.mkdir()
    for n in range(count):
        (photos / f"{n:05}.png").hardlink_to(photo)
    return photos


# A shell has what it runs in the background ignore SIGINT, and what that starts ignores it, too.
INTERRUPTIBLE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from topwork.cli import main; main()"
)


def in_a_process(server: Running, *arguments: object, errors: int) -> subprocess.Popen[str]:
    """Begin ``topwork classify --json`` with a pipe for its output."""
    command = [sys.executable, "-c", INTERRUPTIBLE, "classify", "--address", server.address]
    command += ["--model", "colours", "--json", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)


def test_classify_shows_how_far_it_is(server: Running, tmp_path: Path) -> None:
    """A terminal has a bar with the number of photos; the output has the rows and nothing else."""
    terminal, its_end = os.openpty()
    process = in_a_process(server, many(tmp_path, 40), errors=its_end)
    os.close(its_end)
    output, _ = process.communicate(timeout=60)
    shown = b""
    with contextlib.suppress(OSError):  # the end, on Linux
        while chunk := os.read(terminal, 4096):
            shown += chunk
    os.close(terminal)
    assert (process.returncode, len(rows(output))) == (0, 40)
    assert b"40/40" in shown


def test_an_interrupt_ends_classify(server: Running, tmp_path: Path) -> None:
    """On SIGINT the rows so far are whole lines, nothing is a traceback, and the status is 130."""
    errors = tmp_path / "errors"
    with (
        errors.open("w") as file,
        in_a_process(server, many(tmp_path, 20_000), errors=file.fileno()) as process,
    ):
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        output = process.stdout.read()  # communicate() would lose what readline() read ahead
    assert process.returncode == STATUS
    assert 0 < len(rows(first + output)) < 20_000
    assert "Traceback" not in errors.read_text()


def test_an_interrupt_does_not_wait_for_a_row_for_long() -> None:
    """Where none comes, such as from a server that hangs, an interrupt comes through by itself."""

    def wait() -> None:
        with _interrupts():
            signal.raise_signal(signal.SIGINT)
            threading.Event().wait(60)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            wait()
    finally:
        signal.signal(signal.SIGINT, before)


def test_classify_for_people(topwork: Command, tmp_path: Path) -> None:
    """Without --json a line has the file, the labels and their probabilities."""
    photo = tmp_path / "[red]photo.png"
    photo.write_bytes(picture("green", 45))
    status, output, _ = topwork("classify", "--model", "colours", photo)
    assert status == 0
    assert re.match(rf"{re.escape(str(photo))}: green [01]\.\d{{3}}  \w+ 0\.\d{{3}}  ", output)


@pytest.mark.parametrize(
    "arguments",
    [
        ("classify", "--model", "unknown", __file__),
        ("describe", "unknown"),
        ("add-class", "--model", "unknown", "--label", "violet", __file__),
    ],
)
def test_a_call_that_fails_is_one_line(topwork: Command, arguments: tuple[str, ...]) -> None:
    """What the server refuses is one line on standard error, and status 1."""
    status, _, errors = topwork(*arguments)
    assert status == 1
    assert errors.splitlines()[-1].startswith("error: there is no model 'models/unknown'")
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("command", "end"),
    [
        ("describe colour", "there is no model 'models/colour'; close to it: colours"),
        (f"classify --model colour {__file__}", "; close to it: colours"),
        ("remove-class --model colours --label crimsom", "'crimsom'; close to it: crimson"),
        ("rollback --model colours --revision 7", "; there are: 1"),
        ("operations cancel 0eedf153-e607-48de-8787-0cdbbd424572", "0cdbbd424572'"),
    ],
)
def test_a_wrong_name_is_told_with_those_close_to_it(
    topwork: Command, command: str, end: str
) -> None:
    """A model, label or revision that is not there: the error ends with what may be meant."""
    name, *options = command.replace("operations ", "operations_").split()
    status, _, errors = topwork(name.replace("_", " "), *options)
    assert status == 1
    assert errors.splitlines()[-1].endswith(end)


@pytest.mark.parametrize("command", ["classify --model m", "add-class --model m --label l"])
def test_a_url_is_told_not_to_be_a_file(topwork: Command, command: str) -> None:
    """An argument that is a URL is named as it was given, with both slashes."""
    name, *options = command.split()
    status, _, errors = topwork(name, *options, "https://example.org/tulip.jpg")
    assert status == 2
    assert "'https://example.org/tulip.jpg' is a URL, no file" in " ".join(errors.split())


@pytest.mark.parametrize("name", ["[/x]", "[bold]"])
def test_an_error_is_printed_as_it_is(topwork: Command, name: str) -> None:
    """Brackets in a message are brackets."""
    status, _, errors = topwork("describe", name)
    assert status == 1
    assert repr(f"models/{name}") in errors


@pytest.mark.parametrize(
    "arguments",
    [
        ("describe", "daisy\udcff"),
        ("classify", "--model", "daisy\udcff", __file__),
        ("remove-class", "--model", "colours", "--label", "daisy\udcff"),
        ("add-class", "--model", "colours", "--label", "daisy\udcff", __file__),
        ("operations list", "--filter", "label = daisy\udcff"),
    ],
)
def test_an_argument_that_is_no_utf_8_is_one_line(
    topwork: Command, arguments: tuple[str, ...]
) -> None:
    """What no message can hold is an error that names it, and no traceback."""
    status, _, errors = topwork(*arguments)
    assert status == 1
    assert "daisy\\xff is no UTF-8" in errors.splitlines()[-1]


def test_an_error_controls_no_terminal(topwork: Command) -> None:
    """An escape sequence in what was typed is printed as text."""
    _, _, errors = topwork("describe", "\x1b[31mred")
    assert "\x1b" not in errors
    assert "[31mred" in errors


def test_a_server_that_is_not_there_is_one_line(
    topwork: Command, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When nobody listens for as long as a server may take to start, the command says so."""
    monkeypatch.setattr(options, "START_SECONDS", 0.2)
    status, _, errors = topwork("models", address=nobody)
    assert status == 1
    assert errors == (
        f"waiting for a server at {nobody}\n"
        f"error: no server answers at {nobody} within 0.2 s: nothing listens there; a server does "
        "once its models are loaded\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("classify", "--model", "colours"),
        ("classify", __file__),
        ("classify", "--model", "colours", "--top-k", "0", __file__),
        ("add-class", "--model", "colours", "--label", "violet", "/no/such/file"),
        ("add-class", "--model", "colours", __file__),
        ("describe",),
    ],
)
def test_a_wrong_command_line_is_status_2(topwork: Command, arguments: tuple[str, ...]) -> None:
    """Missing or impossible arguments are a usage error."""
    status, output, errors = topwork(*arguments)
    assert (status, output) == (2, "")
    assert "Usage: " in errors


def test_add_class_ends_with_what_it_did(
    topwork: Command, client: Client, model: str, tmp_path: Path
) -> None:
    """`add-class --json` ends with operation, revision, labels and metrics, old against new."""
    photos = written(tmp_path / "violet", [*VIOLETS, ("note.jpg", b"no photo")])
    request_id = str(uuid.uuid4())
    options = ("--model", model, "--label", "violet", "--request-id", request_id, "--json")
    status, output, _ = topwork("add-class", *options, photos)
    assert status == 0
    (answer,) = rows(output)
    assert {"operation", "revision", "labels", "metrics", "comparison"} <= set(answer)
    assert answer["operation"] == f"operations/{request_id}"
    assert (answer["revision"], answer["labels"]) == (2, [*LABELS, "violet"])
    assert set(answer["metrics"]) == METRICS
    assert set(answer["comparison"]) == COMPARISON
    assert set(answer["comparison"]["labels"]) == set(LABELS)
    assert answer["comparison"]["taught"]["label"] == "violet"
    assert answer["metrics"]["images"] == 92
    assert answer["images_used"] == 12
    (skipped,) = answer["skipped"]
    assert skipped["image"] == str(photos / "note.jpg")
    assert answer["left_out"] == []
    assert client.model(model).serving_revision.revision == 2
    status, output, _ = topwork("add-class", *options, photos)
    assert (status, rows(output)[0]["revision"]) == (0, 2)


def test_add_class_goes_on_after_an_unreadable_file(
    topwork: Command, model: str, tmp_path: Path
) -> None:
    """A file that cannot be read is named and left out, and the others are learnt."""
    photos = written(tmp_path / "violet", VIOLETS)
    (photos / "broken.png").symlink_to("/proc/self/mem")
    status, output, errors = topwork(
        "add-class", "--model", model, "--label", "violet", "--json", photos
    )
    (answer,) = rows(output)
    assert (status, answer["images_used"]) == (0, 12)
    broken = str(photos / "broken.png")
    assert broken in errors
    assert answer["left_out"] == [{"reason": "unreadable", "count": 1, "names": [broken]}]


def with_droppings(folder: Path) -> Path:
    """Add to a folder of photos what is none, and return it; each would be an error if sent."""
    for name in (".Trashes/1.png", ".DS_Store", "__MACOSX/._1.png", "Thumbs.db", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no photo")
    (folder / "gone.png").symlink_to("/nonexistent")
    os.mkfifo(folder / "pipe.png")
    return folder


LEFT_OUT = {
    "hidden": [".DS_Store", ".Trashes"],
    "system": ["Thumbs.db", "__MACOSX"],
    "text": ["notes.txt"],
    "special": ["pipe.png"],
    "dead_link": ["gone.png"],
}


def left_out(folder: Path, answer: dict[str, Any]) -> dict[str, list[str]]:
    """Return what JSON says was left out below a folder: names by reason, counted right."""
    assert [one["count"] for one in answer["left_out"]] == [
        len(one["names"]) for one in answer["left_out"]
    ]
    return {
        one["reason"]: [str(Path(name).relative_to(folder)) for name in one["names"]]
        for one in answer["left_out"]
    }


def test_add_class_leaves_out_what_is_no_photo(
    topwork: Command, model: str, tmp_path: Path
) -> None:
    """Hidden folders, droppings, texts, pipes and dead links are not sent, but listed."""
    photos = with_droppings(written(tmp_path / "violet", VIOLETS))
    options = ("--model", model, "--label", "violet", "--json")
    status, output, errors = topwork("add-class", *options, photos)
    (answer,) = rows(output)
    assert (status, answer["images_used"], answer["skipped"]) == (0, 12, [])
    assert left_out(photos, answer) == LEFT_OUT
    assert f"left out: 1 dead link ({photos}/gone.png)" in errors


def test_classify_leaves_out_what_is_no_photo(topwork: Command, tmp_path: Path) -> None:
    """The same are not asked for; the last line of JSON and standard error list them."""
    photos = with_droppings(written(tmp_path / "photos", VIOLETS[:2]))
    status, output, errors = topwork("classify", "--model", "colours", "--json", photos)
    *answers, last = rows(output)
    assert (status, len(answers)) == (0, 2)
    assert set(last) == {"left_out"}
    assert left_out(photos, last) == LEFT_OUT
    status, output, again = topwork("classify", "--model", "colours", photos)
    assert (status, len(output.splitlines()), again) == (0, 2, errors)
    assert "left out: 2 hidden files or folders" in errors


def test_photos_behind_a_link_are_photos(topwork: Command, tmp_path: Path) -> None:
    """A link to a folder is followed, once, and a loop of links ends."""
    photos = written(tmp_path / "photos", VIOLETS[:1])
    (photos / "more").symlink_to(written(tmp_path / "elsewhere", VIOLETS[1:3]))
    (tmp_path / "elsewhere" / "back").symlink_to(photos)
    status, output, _ = topwork("classify", "--model", "colours", "--json", photos)
    *answers, last = rows(output)
    assert (status, len(answers)) == (0, 3)
    assert left_out(photos, last) == {"repeated": ["more/back"]}


def test_add_class_does_not_learn_a_test_set(topwork: Command, model: str, tmp_path: Path) -> None:
    """A folder that holds splits is refused; the one to learn from is taken by its name."""
    folder = tmp_path / "violet"
    folder.mkdir()
    for name, photos in (("train", VIOLETS[:6]), ("test", VIOLETS[6:])):
        written(folder / name, photos)
    options = ("--model", model, "--label", "violet", "--json")
    status, output, errors = topwork("add-class", *options, folder)
    assert (status, output) == (1, "")
    assert f"learn from {folder}/train alone" in errors
    status, output, _ = topwork("add-class", *options, folder / "train")
    assert (status, rows(output)[0]["images_used"]) == (0, 6)


NOT_UTF_8 = "viol\udce9t\n\x1b[31m\u202e.png"
ESCAPED = "viol\\xe9t\\u000a\\u001b[31m\\u202e.png"


def test_add_class_takes_names_that_are_no_utf_8(
    topwork: Command, model: str, tmp_path: Path
) -> None:
    """Such a photo is learnt like the others; its name is escaped in the output."""
    photos = written(tmp_path / "violet", [*VIOLETS, (NOT_UTF_8, b"no photo")])
    (photos / VIOLETS[0][0]).rename(photos / f"1{NOT_UTF_8}")
    options = ("--model", model, "--label", "violet", "--json")
    status, output, _ = topwork("add-class", *options, photos)
    (answer,) = rows(output)
    assert (status, answer["images_used"]) == (0, 12)
    assert [one["image"] for one in answer["skipped"]] == [f"{photos}/{ESCAPED}"]


def test_classify_takes_names_that_are_no_utf_8(topwork: Command, tmp_path: Path) -> None:
    """All files have their answers, for people and programs; no name controls the terminal."""
    photos = written(tmp_path / "photos", [(NOT_UTF_8, VIOLETS[0][1]), VIOLETS[1]])
    status, output, _ = topwork("classify", "--model", "colours", "--json", photos)
    assert status == 0
    assert [one["image"] for one in rows(output)] == [
        f"{photos}/{VIOLETS[1][0]}",
        f"{photos}/{ESCAPED}",
    ]
    status, output, _ = topwork("classify", "--model", "colours", photos)
    assert status == 0
    assert f"{photos}/{ESCAPED}: " in output
    assert len(output.splitlines()) == 2


@pytest.fixture
def with_a_video(tmp_path: Path) -> Path:
    """Return a folder of twelve photos and a file that no message could hold."""
    photos = written(tmp_path / "photos", VIOLETS)
    with (photos / "video.mp4").open("wb") as video:
        video.truncate(65 * 2**20)
    return photos


def test_a_stray_video_is_not_classified(topwork: Command, with_a_video: Path) -> None:
    """A huge file is an error in its own row; the photos beside it have their answers."""
    status, output, _ = topwork("classify", "--model", "colours", "--json", with_a_video)
    errors = {Path(one["image"]).name for one in rows(output) if one["error"] is not None}
    assert (status, len(rows(output)), errors) == (1, 13, {"video.mp4"})


def test_a_stray_video_is_not_learnt(topwork: Command, model: str, with_a_video: Path) -> None:
    """A huge file is left out of an upload, and named; the photos beside it are learnt."""
    options = ("--model", model, "--label", "violet", "--json")
    status, output, errors = topwork("add-class", *options, with_a_video)
    assert (status, rows(output)[0]["images_used"]) == (0, 12)
    assert "video.mp4" in output + errors


def test_add_class_that_fails_is_told(topwork: Command, model: str, tmp_path: Path) -> None:
    """An operation that fails is its name and error as JSON, a line for people, and status 1."""
    photos = written(tmp_path / "violet", VIOLETS[:3])
    status, output, errors = topwork(
        "add-class", "--model", model, "--label", "violet", "--json", photos
    )
    (answer,) = rows(output)
    assert status == 1
    assert set(answer) == {"operation", "error", "reason"}
    assert answer["reason"] == "TOO_FEW_IMAGES"
    assert "3 usable images" in answer["error"]
    assert "error: label 'violet' has 3 usable images" in errors


@pytest.mark.parametrize(
    "label",
    [
        "violet",
        "[/b] violet",
    ],
)
def test_add_class_for_people(topwork: Command, model: str, tmp_path: Path, label: str) -> None:
    """Without --json there is a table of before and after, whatever the label's characters."""
    photos = written(tmp_path / "photos", VIOLETS)
    status, output, _ = topwork("add-class", "--model", model, "--label", label, photos)
    assert status == 0
    assert f"{label} added: revision 2" in output
    assert f"recall of {label}" in output


def test_names_reach_a_terminal_as_escapes(topwork: Command, model: str, tmp_path: Path) -> None:
    """What a photo is called, by whoever uploaded it, writes no control characters."""
    photos = written(tmp_path / "violet", [*VIOLETS, ("\x1b[31m\u202egnp.png", b"no photo")])
    status, output, errors = topwork("add-class", "--model", model, "--label", "violet", photos)
    assert status == 0
    assert r"\u001b[31m\u202egnp.png" in output
    assert not {"\x1b", "\u202e"}.intersection(output + errors)


def test_an_empty_folder_is_told(topwork: Command, tmp_path: Path) -> None:
    """A folder without any file is an error before anything is uploaded."""
    status, output, errors = topwork(
        "add-class", "--model", "colours", "--label", "violet", tmp_path
    )
    assert (status, output) == (1, "")
    assert "there is no photo below" in errors


def test_models_and_describe_tell_the_same(topwork: Command) -> None:
    """`models --json` has a line a model, `describe --json` the same object for one."""
    status, output, _ = topwork("models", "--json")
    assert status == 0
    (listed,) = [one for one in rows(output) if one["model"] == "colours"]
    status, output, _ = topwork("describe", "--json", "colours")
    assert status == 0
    assert rows(output) == [listed]
    assert set(listed) == {
        "model",
        "revision",
        "revisions",
        "labels",
        "backbone",
        "preprocess",
        "head",
        "metrics",
        "limits",
    }
    assert (listed["revision"], listed["labels"]) == (1, LABELS)
    assert set(listed["metrics"]) == METRICS
    assert listed["limits"]["max_images_per_request"] == 16


@pytest.mark.parametrize("command", [("models",), ("describe", "colours")])
def test_tables_for_people(topwork: Command, command: tuple[str, ...]) -> None:
    """Without --json both name the model and its backbone."""
    status, output, _ = topwork(*command)
    assert status == 0
    assert "colours" in output
    assert "tiny" in output


def test_the_command_runs_as_a_module(server: Running) -> None:
    """`python -m topwork.cli` is the command, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "topwork.cli", "describe", "unknown", "--address", server.address],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: there is no model 'models/unknown'")
    assert len(done.stderr.splitlines()) == 1


def test_servers_behind_one_name_take_turns(server: Running, idle: Running) -> None:
    """Of several addresses of a name each has its share of a client's calls."""
    name = f"ipv4:{server.address},{idle.address}"

    def calls(one: Running) -> int:
        return sum(
            fact.get("event") == "call" and str(fact["method"]).endswith("/GetModel")
            for fact in one.facts
        )

    before = calls(server), calls(idle)
    with Client(name) as client:

        def both() -> bool:
            client.model("colours")
            return calls(server) > before[0] and calls(idle) > before[1]

        eventually(both)


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY"])
def test_no_proxy_is_asked_for_this_host(
    topwork: Command,
    server: Running,
    nobody: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variable: str,
) -> None:
    """Whatever proxy the environment names, all commands and clients reach the loopback."""
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, f"http://{nobody}")
    monkeypatch.setattr(options, "START_SECONDS", 5.0)
    photo = tmp_path / "photo.png"
    photo.write_bytes(picture("blue", 40))
    for command in (
        ("health",),
        ("models",),
        ("describe", "colours"),
        ("history", "colours"),
        ("operations",),
        ("classify", "--model", "colours", photo),
        ("add-class", "--validate-only", "--model", "colours", "--label", "violet", photo),
    ):
        _, _, errors = topwork(*command)
        assert "no server answers" not in errors
        assert "failed to connect" not in errors
    port = server.address.rpartition(":")[2]

    async def ask(address: str) -> None:
        async with AsyncClient(address) as own:
            await own.wait_until_ready(5)
            assert (await own.model("colours")).revisions == [1]

    for address in (server.address, f"localhost:{port}", f"dns:///localhost:{port}"):
        asyncio.run(ask(address))
        with Client(address) as own:
            own.wait_until_ready(5)
            assert own.model("colours").revisions == [1]


def test_another_host_is_reached_by_way_of_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's proxy is asked for it, and named where nothing comes of that."""
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY", "grpc_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"http://me:secret@127.0.0.1:{proxy.getsockname()[1]}"
        monkeypatch.setenv("http_proxy", address)
        with Client("example.org:50051") as own:
            error = failure(lambda: own.wait_until_ready(0.5))
        proxy.settimeout(60)
        asked, _ = proxy.accept()
        with asked:
            assert asked.recv(4096).startswith(b"CONNECT example.org:50051")
    assert "no server answers at example.org:50051" in str(error)
    assert "the proxy in http_proxy" in str(error)
    assert "secret" not in str(error)


@pytest.mark.parametrize("calls", ["add_class", "add_examples"])
def test_what_the_source_of_an_upload_raises_comes_out(
    idle: Running, caplog: pytest.LogCaptureFixture, calls: str
) -> None:
    """It is the caller's own error, from either client; nothing is learnt, and nothing logged."""

    def images() -> Iterator[tuple[str, bytes]]:
        yield from VIOLETS[:6]
        raise KeyError("gone")

    async def upload() -> None:
        async with AsyncClient(idle.address) as own:
            await getattr(own, calls)("colours", "blue", images())

    with Client(idle.address) as own:
        before = len(list(own.operations()))
        with pytest.raises(KeyError, match="gone"):
            getattr(own, calls)("colours", "blue", images())
        with pytest.raises(KeyError, match="gone"):
            asyncio.run(upload())
        assert len(list(own.operations())) == before
    assert not caplog.records


def test_an_upload_that_the_end_of_its_process_cuts_off_is_none(
    idle: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part that was sent by then is not taken for all: nothing is learnt from it."""
    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr("topwork.client.source.atexit.register", at_exit.append)
    ends = threading.Event()

    def images() -> Iterator[tuple[str, bytes]]:
        yield from VIOLETS
        threading.Thread(target=lambda: [end() for end in at_exit]).start()
        ends.wait(0.2)  # the process, while this waits for another photo
        yield VIOLETS[0]

    with Client(idle.address) as own:
        before = len(list(own.operations()))
        error = failure(lambda: own.add_class("colours", "violet", images()))
        assert error.code == "CANCELLED"
        assert len(list(own.operations())) == before


@pytest.mark.parametrize("ending", ["stream.close()", "", "raise SystemExit(0)", "client.close()"])
def test_a_client_process_ends_well_amid_a_stream(
    server: Running, ending: str, tmp_path: Path
) -> None:
    """Its status is 0, however it leaves a stream whose source is in native code.

    gRPC takes from the source in a thread of its own, which must not come back when the interpreter
    has ended.
    """
    program = f"""
import sys
from pathlib import Path
import numpy as np
from support.pictures import picture
from topwork.runtime.backend import open_session
from topwork import Client

session = open_session(Path(sys.argv[2]).read_bytes(), output="embedding")

def images():
    yield (photo := picture("blue", 1))
    while session.run(np.zeros((1, 16, 16, 3), np.uint8)).size:
        yield photo

client = Client(sys.argv[1])
stream = client.classify_stream("colours", images(), images_per_message=1)
next(stream)
{ending}
"""
    model = tmp_path / "model.onnx"
    model.write_bytes(tiny.busy_backbone_model())
    for _ in range(3):
        ended = subprocess.run(
            [sys.executable, "-c", program, server.address, str(model)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("wrong", ["\u00e4", "\udcff", "\n", " ", "\x1b[31m"])
def test_a_token_that_can_be_none_is_refused_unseen(
    topwork: Command, server: Running, wrong: str
) -> None:
    """Where a character is that no token has is said, and nothing of the token."""
    secret = "topwork_0123456789ab_" + 8 * "s3cret"
    status, output, errors = topwork("models", "--token", f"{secret}{wrong}{secret}")
    assert (status, output) == (1, "")
    assert f"at position {len(secret) + 1}" in errors
    assert "s3cret" not in errors
    with pytest.raises(InvalidInput):
        AsyncClient(server.address, Credentials(token=secret + wrong))
