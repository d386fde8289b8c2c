"""Python clients and command line against a running server."""

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
from support.servers import AddClass, Command, Running, eventually, failure

from topwork import AsyncClient, CallFailed, Client, Credentials, progress, result
from topwork.cli import options
from topwork.cli.image_rows import interrupts
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


def test_blocking_and_asyncio_clients_agree(client: Client, server: Running, model: str) -> None:
    """Each method gives the same result in both clients."""
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
                [listed async for listed in own.models()],
                [revision async for revision in own.revisions(model)],
                [operation async for operation in own.operations(f"model = models/{model}")],
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
    "predict": lambda client: client.predict("unknown", [b"photo"]),
    "add_class": lambda client: client.add_class("unknown", "violet", VIOLETS),
    "add_examples": lambda client: client.add_examples("unknown", "violet", VIOLETS),
    "add_classes": lambda client: client.add_classes("unknown", {"violet": VIOLETS}),
    "remove_class": lambda client: client.remove_class("unknown", "violet"),
    "rename_class": lambda client: client.rename_class("unknown", "violet", "mauve"),
    "retrain": lambda client: client.retrain("unknown"),
    "remove_examples": lambda client: client.remove_examples("unknown", ["0" * 64]),
    "move_examples": lambda client: client.move_examples("unknown", ["0" * 64], "violet"),
    "list_examples": lambda client: list(client.list_examples("unknown")),
    "get_example": lambda client: client.get_example("unknown", "0" * 64),
    "report": lambda client: client.report("unknown", 1),
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
def test_a_failed_call_raises_call_failed(client: Client, call: str) -> None:
    """Every method raises CallFailed with code, reason and message of the server's status."""
    error = failure(lambda: CALLS[call](client))
    assert (error.code, error.reason, error.retry_after) == ("NOT_FOUND", "NOT_FOUND", 0)
    assert str(error) == error.status.message
    assert "unknown" in str(error)


@pytest.mark.parametrize("call", CALLS | LISTS)
def test_calls_without_a_server_raise_unavailable(unused_address: str, call: str) -> None:
    """Every method of both clients raises CallFailed UNAVAILABLE if no server listens."""
    with Client(unused_address) as own:
        error = failure(lambda: (CALLS | LISTS)[call](own))
    assert (error.code, error.reason) == ("UNAVAILABLE", "UNAVAILABLE")

    async def ask() -> None:
        async with AsyncClient(unused_address) as own:
            calls: dict[str, Callable[[], Awaitable[object]]] = {
                "classify": lambda: own.classify("x", [b"photo"]),
                "classify_stream": lambda: exhaust(own.classify_stream("x", [b"photo"])),
                "predict": lambda: own.predict("x", [b"photo"]),
                "add_class": lambda: own.add_class("x", "violet", VIOLETS),
                "add_examples": lambda: own.add_examples("x", "violet", VIOLETS),
                "add_classes": lambda: own.add_classes("x", {"violet": VIOLETS}),
                "remove_class": lambda: own.remove_class("x", "violet"),
                "rename_class": lambda: own.rename_class("x", "violet", "mauve"),
                "retrain": lambda: own.retrain("x"),
                "remove_examples": lambda: own.remove_examples("x", ["0" * 64]),
                "move_examples": lambda: own.move_examples("x", ["0" * 64], "violet"),
                "list_examples": lambda: exhaust(own.list_examples("x")),
                "get_example": lambda: own.get_example("x", "0" * 64),
                "report": lambda: own.report("x", 1),
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
    """Iterate to the end."""
    async for _ in answers:
        pass


def test_wait_until_ready_reconnects_without_backoff() -> None:
    """A client that waits reconnects at least every 2 s, without exponential backoff."""
    tries: list[socket.socket] = []

    def refuse() -> None:
        with contextlib.suppress(OSError):  # closed below
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


def test_an_overloaded_server_says_when_to_retry(idle: Running) -> None:
    """If many large requests arrive at once, some are refused with RetryInfo."""
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


def test_a_large_upload_is_split(client: Client, add_class: AddClass, model: str) -> None:
    """An upload larger than one message is split; each image has its name."""
    names = [f"photo-{n}" for n in range(12)]
    padded = [
        (name, content + bytes(800_000)) for name, (_, content) in zip(names, VIOLETS, strict=True)
    ]
    length = sum(len(content) for _, content in padded)
    assert length > 2 * client.model(model).limits.max_message_bytes
    response = result(add_class(model, "violet", [*padded, ("the last", b"no photo")]))
    assert response.images_used == 12
    assert [image.display_name for image in response.skipped_images] == ["the last"]


def test_one_client_serves_many_threads(client: Client) -> None:
    """Several threads can use one blocking client at once."""
    barrier = threading.Barrier(4)

    def ask(label: str) -> str:
        barrier.wait(60)
        answer = client.classify("colours", [picture(label, 45)])
        return str(answer.results[0].predictions[0].label)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, LABELS)) == LABELS


def test_result_and_progress_refuse_other_operations(idle: Running) -> None:
    """`result` of an unfinished operation and `progress` of a foreign one raise ValueError."""
    with Client(idle.address) as own:
        accepted = own.add_class("colours", "violet", VIOLETS)
    with pytest.raises(ValueError, match="is not a finished change of a model"):
        result(accepted)
    with pytest.raises(ValueError, match="is not a change of a model"):
        progress(operations_pb2.Operation(name="operations/other"))


def failing_images() -> Iterator[tuple[str, bytes]]:
    """Yield photos, then raise OSError."""
    yield from VIOLETS
    raise OSError(5, "Input/output error")


def test_add_class_raises_errors_of_images(client: Client, server: Running, model: str) -> None:
    """Both clients raise the error of an upload's source, and no operation exists."""

    async def upload() -> None:
        async with AsyncClient(server.address) as own:
            await own.add_class(model, "violet", failing_images())

    for add in (
        lambda: client.add_class(model, "violet", failing_images()),
        lambda: client.add_examples(model, "blue", failing_images()),
        lambda: asyncio.run(upload()),
    ):
        with pytest.raises(OSError, match="Input/output error"):
            add()
    assert list(client.operations(f"model = models/{model}")) == []


def test_a_cancelled_upload_raises_cancelled_error(server: Running, model: str) -> None:
    """A cancelled asyncio task raises CancelledError even if its images also failed."""

    async def upload() -> None:
        async with AsyncClient(server.address) as own:

            def cancelling() -> Iterator[tuple[str, bytes]]:
                task.cancel()
                yield from failing_images()

            task = asyncio.create_task(own.add_class(model, "violet", cancelling()))
            await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(upload())


def test_uploaded_names_need_not_be_utf_8(add_class: AddClass, model: str) -> None:
    """A file name that is not UTF-8 is uploaded with escapes."""
    finished = add_class(model, "violet", [*VIOLETS, ("torn\udcff.png", b"no photo")])
    (skipped,) = result(finished).skipped_images
    assert skipped.display_name == "torn\\xff.png"


def test_long_paths_keep_their_ends(add_class: AddClass, model: str) -> None:
    """The name of an uploaded photo keeps the end of a long path."""
    deep = "folder/" * 40
    photos = [(f"{deep}{name}.jpg", b"no photo") for name in "ab"]
    skipped = result(add_class(model, "violet", [*VIOLETS, *photos])).skipped_images
    assert [image.display_name[-8:] for image in skipped] == ["er/a.jpg", "er/b.jpg"]


def test_classify_prints_a_row_for_each_image(topwork: Command, tmp_path: Path) -> None:
    """`classify --json` prints an object for each file, with all documented keys."""
    folder = written(tmp_path / "photos", [(f"{name}.png", picture(name, 45)) for name in LABELS])
    status, output, _ = topwork("classify", "--model", "colours", "--json", "--top-k", 2, folder)
    assert status == 0
    answers = rows(output)
    keys = {"image", "revision", "predictions", "unknown_probability", "is_unknown", "error"}
    assert [set(row) for row in answers] == [keys] * 4
    assert all(0 <= row["unknown_probability"] <= 1 for row in answers)
    assert [row["image"] for row in answers] == [str(folder / f"{name}.png") for name in LABELS]
    assert {row["revision"] for row in answers} == {1}
    assert {row["error"] for row in answers} == {None}
    for row, label in zip(answers, LABELS, strict=True):
        first, second = row["predictions"]
        assert set(first) == {"label", "probability"}
        assert first["label"] == label
        assert 1 >= first["probability"] >= second["probability"] >= 0


def test_classify_continues_after_a_bad_file(topwork: Command, tmp_path: Path) -> None:
    """Missing, unreadable and non-image files are errors in their rows; the exit status is 1."""
    note = tmp_path / "note.png"
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
    assert [row["predictions"] for row in (first, second, third)] == [[], [], []]
    assert [row["revision"] for row in (first, second, third, last)] == [1, None, None, 1]
    assert "has an unknown format; supported are JPEG" in first["error"]
    assert second["error"] == "the file cannot be read: No such file or directory"
    assert third["error"].startswith("the file cannot be read: ")
    assert last["predictions"][0]["label"] == "green"


def test_classify_splits_files_into_requests(topwork: Command, tmp_path: Path) -> None:
    """More files than a request may hold go in several requests, sorted by name."""
    photos = [(f"{n:02}.png", picture(LABELS[n % 4], 100 + n)) for n in range(20)]
    status, output, _ = topwork(
        "classify", "--model", "colours", "--json", written(tmp_path / "photos", photos)
    )
    assert status == 0
    labels = [row["predictions"][0]["label"] for row in rows(output)]
    assert labels == [LABELS[n % 4] for n in range(20)]


def test_unreadable_files_keep_their_places(topwork: Command, tmp_path: Path) -> None:
    """Each unreadable file among many photos, also the first and last, is an error in its row."""
    photos = [(f"{n:03}.png", picture(LABELS[n % 4], n)) for n in range(100)]
    folder = written(tmp_path / "photos", photos)
    broken = [0, 1, 50, 98, 99]
    for n in broken:
        (folder / f"{n:03}.png").unlink()
        (folder / f"{n:03}.png").symlink_to("/proc/self/mem")
    status, output, _ = topwork("classify", "--model", "colours", "--json", folder)
    answers = rows(output)
    assert status == 1
    assert [row["image"] for row in answers] == [str(folder / name) for name, _ in photos]
    assert [n for n, row in enumerate(answers) if row["error"] is not None] == broken
    good = [(n, row) for n, row in enumerate(answers) if row["error"] is None]
    assert all(row["predictions"][0]["label"] == LABELS[n % 4] for n, row in good)


def test_classify_of_unreadable_files_only_exits_with_1(topwork: Command, tmp_path: Path) -> None:
    """If no file can be read, each has a row, and the exit status is 1."""
    missing = [tmp_path / f"{n}.png" for n in range(30)]
    status, output, _ = topwork("classify", "--model", "colours", "--json", *missing)
    assert (status, len(rows(output))) == (1, 30)


def folder_of(folder: Path, count: int) -> Path:
    """Return a new folder of ``count`` files with the same photo in them."""
    photo = folder / "photo.png"
    photo.write_bytes(picture("green", 45))
    photos = folder / "photos"
    photos.mkdir()
    for n in range(count):
        (photos / f"{n:05}.png").hardlink_to(photo)
    return photos


# Background jobs of a shell ignore SIGINT, and their child processes inherit that.
INTERRUPTIBLE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from topwork.cli import main; main()"
)


def start_classify(server: Running, *arguments: object, errors: int) -> subprocess.Popen[str]:
    """Start ``topwork classify --json`` with a pipe for its output."""
    command = [sys.executable, "-c", INTERRUPTIBLE, "classify", "--address", server.address]
    command += ["--model", "colours", "--json", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)


def test_classify_shows_a_progress_bar(server: Running, tmp_path: Path) -> None:
    """A terminal on standard error gets a progress bar; the output has only the rows."""
    terminal, terminal_end = os.openpty()
    process = start_classify(server, folder_of(tmp_path, 40), errors=terminal_end)
    os.close(terminal_end)
    output, _ = process.communicate(timeout=60)
    shown = b""
    with contextlib.suppress(OSError):  # Linux's end of file
        while chunk := os.read(terminal, 4096):
            shown += chunk
    os.close(terminal)
    assert (process.returncode, len(rows(output))) == (0, 40)
    assert b"40/40" in shown


def test_an_interrupt_ends_classify(server: Running, tmp_path: Path) -> None:
    """On SIGINT the rows so far are whole lines, there is no traceback, the exit status is 130."""
    errors = tmp_path / "errors"
    with (
        errors.open("w") as file,
        start_classify(server, folder_of(tmp_path, 20_000), errors=file.fileno()) as process,
    ):
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        output = process.stdout.read()  # communicate() would lose what readline() read ahead
    assert process.returncode == STATUS
    assert 0 < len(rows(first + output)) < 20_000
    assert "Traceback" not in errors.read_text()


def test_an_interrupt_without_rows_raises_keyboard_interrupt() -> None:
    """An interrupt ends the command even if no row arrives, such as from a hanging server."""

    def wait() -> None:
        with interrupts():
            signal.raise_signal(signal.SIGINT)
            threading.Event().wait(60)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            wait()
    finally:
        signal.signal(signal.SIGINT, before)


def test_classify_prints_text_lines(topwork: Command, tmp_path: Path) -> None:
    """Without --json a line has the file, its labels and their probabilities."""
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
def test_a_failed_call_prints_one_line(topwork: Command, arguments: tuple[str, ...]) -> None:
    """An error of the server is one line on standard error; the exit status is 1."""
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
def test_an_unknown_name_lists_similar_names(topwork: Command, command: str, end: str) -> None:
    """The error of an unknown model, label or revision ends with suggestions."""
    name, *options = command.replace("operations ", "operations_").split()
    status, _, errors = topwork(name.replace("_", " "), *options)
    assert status == 1
    assert errors.splitlines()[-1].endswith(end)


@pytest.mark.parametrize("command", ["classify --model m", "add-class --model m --label l"])
def test_a_url_as_a_file_is_a_usage_error(topwork: Command, command: str) -> None:
    """The error of a URL given as a file has the URL with both slashes."""
    name, *options = command.split()
    status, _, errors = topwork(name, *options, "https://example.org/tulip.jpg")
    assert status == 2
    assert "'https://example.org/tulip.jpg' is a URL, not a file" in " ".join(errors.split())


@pytest.mark.parametrize("name", ["[/x]", "[bold]"])
def test_an_error_is_printed_without_markup(topwork: Command, name: str) -> None:
    """Brackets in an error are printed literally."""
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
def test_a_non_utf_8_argument_is_an_error(topwork: Command, arguments: tuple[str, ...]) -> None:
    """An argument that is not UTF-8 is an error that names it, without a traceback."""
    status, _, errors = topwork(*arguments)
    assert status == 1
    assert "daisy\\xff is not UTF-8" in errors.splitlines()[-1]


def test_an_error_escapes_control_characters(topwork: Command) -> None:
    """An escape sequence in an argument is printed as text."""
    _, _, errors = topwork("describe", "\x1b[31mred")
    assert "\x1b" not in errors
    assert "[31mred" in errors


def test_a_command_without_a_server_is_an_error(
    topwork: Command, unused_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no server listens within the start-up timeout, the command prints an error."""
    monkeypatch.setattr(options, "START_SECONDS", 0.2)
    status, _, errors = topwork("models", address=unused_address)
    assert status == 1
    assert errors == (
        f"waiting for a server at {unused_address}\n"
        f"error: no server answers at {unused_address} within 0.2 s: nothing listens there; "
        "a server listens only once its models are loaded\n"
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
def test_a_wrong_command_line_exits_with_2(topwork: Command, arguments: tuple[str, ...]) -> None:
    """Missing or impossible arguments are a usage error."""
    status, output, errors = topwork(*arguments)
    assert (status, output) == (2, "")
    assert "Usage: " in errors


def test_add_class_json(topwork: Command, client: Client, model: str, tmp_path: Path) -> None:
    """`add-class --json` prints operation, revision, labels, metrics and comparison."""
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
    assert answer["comparison"]["taught"][0]["label"] == "violet"
    assert answer["metrics"]["images"] == 92
    assert answer["images_used"] == 12
    (skipped,) = answer["skipped"]
    assert skipped["image"] == str(photos / "note.jpg")
    assert answer["left_out"] == []
    assert client.model(model).serving_revision.revision == 2
    status, output, _ = topwork("add-class", *options, photos)
    assert (status, rows(output)[0]["revision"]) == (0, 2)


def test_add_class_skips_an_unreadable_file(topwork: Command, model: str, tmp_path: Path) -> None:
    """An unreadable file is named and left out; the others are used."""
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


def with_other_files(folder: Path) -> Path:
    """Add files to a folder that must not be sent, and return the folder."""
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
    """Return the left-out names below a folder by reason, from JSON; check their counts."""
    groups = answer["left_out"]
    assert [group["count"] for group in groups] == [len(group["names"]) for group in groups]
    return {
        group["reason"]: [str(Path(name).relative_to(folder)) for name in group["names"]]
        for group in groups
    }


def test_add_class_leaves_out_other_files(topwork: Command, model: str, tmp_path: Path) -> None:
    """Hidden folders, system files, texts, pipes and dead links are not sent, but listed."""
    photos = with_other_files(written(tmp_path / "violet", VIOLETS))
    options = ("--model", model, "--label", "violet", "--json")
    status, output, errors = topwork("add-class", *options, photos)
    (answer,) = rows(output)
    assert (status, answer["images_used"], answer["skipped"]) == (0, 12, [])
    assert left_out(photos, answer) == LEFT_OUT
    assert f"left out: 1 dead link ({photos}/gone.png)" in errors


def test_classify_leaves_out_other_files(topwork: Command, tmp_path: Path) -> None:
    """The same files are not sent; the last line of JSON and standard error list them."""
    photos = with_other_files(written(tmp_path / "photos", VIOLETS[:2]))
    status, output, errors = topwork("classify", "--model", "colours", "--json", photos)
    *answers, last = rows(output)
    assert (status, len(answers)) == (0, 2)
    assert set(last) == {"left_out"}
    assert left_out(photos, last) == LEFT_OUT
    status, output, again = topwork("classify", "--model", "colours", photos)
    assert (status, len(output.splitlines()), again) == (0, 2, errors)
    assert "left out: 2 hidden files or folders" in errors


def test_links_to_folders_are_followed(topwork: Command, tmp_path: Path) -> None:
    """A link to a folder is followed once; a loop of links ends."""
    photos = written(tmp_path / "photos", VIOLETS[:1])
    (photos / "more").symlink_to(written(tmp_path / "elsewhere", VIOLETS[1:3]))
    (tmp_path / "elsewhere" / "back").symlink_to(photos)
    status, output, _ = topwork("classify", "--model", "colours", "--json", photos)
    *answers, last = rows(output)
    assert (status, len(answers)) == (0, 3)
    assert left_out(photos, last) == {"repeated": ["more/back"]}


def test_add_class_refuses_splits(topwork: Command, model: str, tmp_path: Path) -> None:
    """A folder that contains splits is refused; its folder `train` is accepted."""
    folder = tmp_path / "violet"
    folder.mkdir()
    for name, photos in (("train", VIOLETS[:6]), ("test", VIOLETS[6:])):
        written(folder / name, photos)
    options = ("--model", model, "--label", "violet", "--json")
    status, output, errors = topwork("add-class", *options, folder)
    assert (status, output) == (1, "")
    assert f"use {folder}/train alone" in errors
    status, output, _ = topwork("add-class", *options, folder / "train")
    assert (status, rows(output)[0]["images_used"]) == (0, 6)


NOT_UTF_8 = "viol\udce9t\n\x1b[31m\u202e.png"
ESCAPED = "viol\\xe9t\\u000a\\u001b[31m\\u202e.png"


def test_add_class_accepts_non_utf_8_names(topwork: Command, model: str, tmp_path: Path) -> None:
    """A photo with such a name is used; the output has its name with escapes."""
    photos = written(tmp_path / "violet", [*VIOLETS, (NOT_UTF_8, b"no photo")])
    (photos / VIOLETS[0][0]).rename(photos / f"1{NOT_UTF_8}")
    options = ("--model", model, "--label", "violet", "--json")
    status, output, _ = topwork("add-class", *options, photos)
    (answer,) = rows(output)
    assert (status, answer["images_used"]) == (0, 12)
    assert [image["image"] for image in answer["skipped"]] == [f"{photos}/{ESCAPED}"]


def test_classify_accepts_non_utf_8_names(topwork: Command, tmp_path: Path) -> None:
    """All files are classified; text and JSON have their names with escapes."""
    photos = written(tmp_path / "photos", [(NOT_UTF_8, VIOLETS[0][1]), VIOLETS[1]])
    status, output, _ = topwork("classify", "--model", "colours", "--json", photos)
    assert status == 0
    assert [row["image"] for row in rows(output)] == [
        f"{photos}/{VIOLETS[1][0]}",
        f"{photos}/{ESCAPED}",
    ]
    status, output, _ = topwork("classify", "--model", "colours", photos)
    assert status == 0
    assert f"{photos}/{ESCAPED}: " in output
    assert len(output.splitlines()) == 2


@pytest.fixture
def with_a_video(tmp_path: Path) -> Path:
    """Return a folder of twelve photos and a video larger than any message may be."""
    photos = written(tmp_path / "photos", VIOLETS)
    with (photos / "video.mp4").open("wb") as video:
        video.truncate(65 * 2**20)
    return photos


def test_classify_skips_a_huge_file(topwork: Command, with_a_video: Path) -> None:
    """A huge file is an error in its row; the photos beside it are classified."""
    status, output, _ = topwork("classify", "--model", "colours", "--json", with_a_video)
    errors = {Path(row["image"]).name for row in rows(output) if row["error"] is not None}
    assert (status, len(rows(output)), errors) == (1, 13, {"video.mp4"})


def test_add_class_skips_a_huge_file(topwork: Command, model: str, with_a_video: Path) -> None:
    """A huge file is left out of an upload and named; the photos beside it are used."""
    options = ("--model", model, "--label", "violet", "--json")
    status, output, errors = topwork("add-class", *options, with_a_video)
    assert (status, rows(output)[0]["images_used"]) == (0, 12)
    assert "video.mp4" in output + errors


def test_add_class_prints_its_error(topwork: Command, model: str, tmp_path: Path) -> None:
    """A failed operation is JSON with name and error, a line of text, and exit status 1."""
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
def test_add_class_prints_a_table(topwork: Command, model: str, tmp_path: Path, label: str) -> None:
    """Without --json a table compares before and after, also for a label with brackets."""
    photos = written(tmp_path / "photos", VIOLETS)
    status, output, _ = topwork("add-class", "--model", model, "--label", label, photos)
    assert status == 0
    assert f"{label} added: revision 2" in output
    assert f"recall of {label}" in output


def test_add_class_escapes_names_of_photos(topwork: Command, model: str, tmp_path: Path) -> None:
    """Control characters in a photo's name are printed as escapes."""
    photos = written(tmp_path / "violet", [*VIOLETS, ("\x1b[31m\u202egnp.png", b"no photo")])
    status, output, errors = topwork("add-class", "--model", model, "--label", "violet", photos)
    assert status == 0
    assert r"\u001b[31m\u202egnp.png" in output
    assert not {"\x1b", "\u202e"}.intersection(output + errors)


def test_add_class_of_an_empty_folder_is_an_error(topwork: Command, tmp_path: Path) -> None:
    """A folder without files is an error before the upload."""
    status, output, errors = topwork(
        "add-class", "--model", "colours", "--label", "violet", tmp_path
    )
    assert (status, output) == (1, "")
    assert "there is no photo below" in errors


def test_models_and_describe_print_the_same_object(topwork: Command) -> None:
    """`models --json` prints a line for each model, `describe --json` the same for one model."""
    status, output, _ = topwork("models", "--json")
    assert status == 0
    (listed,) = [row for row in rows(output) if row["model"] == "colours"]
    status, output, _ = topwork("describe", "--json", "colours")
    assert status == 0
    assert rows(output) == [listed]
    assert set(listed) == {
        "model",
        "revision",
        "revisions",
        "labels",
        "backbone",
        "loaded_backbone",
        "preprocess",
        "head",
        "metrics",
        "limits",
        "draft",
        "input_kind",
    }
    assert (listed["revision"], listed["labels"]) == (1, LABELS)
    assert listed["input_kind"] == "image"
    assert set(listed["metrics"]) == METRICS
    assert listed["limits"]["max_images_per_request"] == 16


@pytest.mark.parametrize("command", [("models",), ("describe", "colours")])
def test_models_and_describe_print_tables(topwork: Command, command: tuple[str, ...]) -> None:
    """Without --json both print the model and its backbone."""
    status, output, _ = topwork(*command)
    assert status == 0
    assert "colours" in output
    assert "tiny" in output


def test_the_command_runs_as_a_module(server: Running) -> None:
    """`python -m topwork.cli` runs the command."""
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


def test_client_balances_servers_behind_one_name(server: Running, idle: Running) -> None:
    """A client distributes its calls over all addresses of a name."""
    name = f"ipv4:{server.address},{idle.address}"

    def calls(to: Running) -> int:
        return sum(
            entry.get("event") == "call" and str(entry["method"]).endswith("/GetModel")
            for entry in to.log_entries
        )

    before = calls(server), calls(idle)
    with Client(name) as client:

        def both() -> bool:
            client.model("colours")
            return calls(server) > before[0] and calls(idle) > before[1]

        eventually(both)


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY"])
def test_no_proxy_is_used_for_the_loopback(
    topwork: Command,
    server: Running,
    unused_address: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variable: str,
) -> None:
    """All commands and clients reach the loopback whatever proxy the environment names."""
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, f"http://{unused_address}")
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


def test_the_proxy_is_used_for_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's proxy is used for another host, and the error names its variable."""
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY", "grpc_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"http://me:secret@127.0.0.1:{proxy.getsockname()[1]}"
        monkeypatch.setenv("http_proxy", address)
        with Client("example.org:50051") as own:
            error = failure(lambda: own.wait_until_ready(0.5))
        proxy.settimeout(60)
        connection, _ = proxy.accept()
        with connection:
            assert connection.recv(4096).startswith(b"CONNECT example.org:50051")
    assert "no server answers at example.org:50051" in str(error)
    assert "the proxy in http_proxy" in str(error)
    assert "secret" not in str(error)


@pytest.mark.parametrize("calls", ["add_class", "add_examples"])
def test_both_clients_raise_the_error_of_an_upload(
    idle: Running, caplog: pytest.LogCaptureFixture, calls: str
) -> None:
    """An error in the caller's images is raised unchanged; no operation begins."""

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


def test_process_exit_cancels_an_upload(idle: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the process exits during an upload, the part already sent makes no operation."""
    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr("topwork.client.source.atexit.register", at_exit.append)
    ends = threading.Event()

    def images() -> Iterator[tuple[str, bytes]]:
        yield from VIOLETS
        threading.Thread(target=lambda: [end() for end in at_exit]).start()
        ends.wait(0.2)  # the process ends while this waits for another photo
        yield VIOLETS[0]

    with Client(idle.address) as own:
        before = len(list(own.operations()))
        error = failure(lambda: own.add_class("colours", "violet", images()))
        assert error.code == "CANCELLED"
        assert len(list(own.operations())) == before


@pytest.mark.parametrize("ending", ["stream.close()", "", "raise SystemExit(0)", "client.close()"])
def test_a_client_process_exits_cleanly_during_a_stream(
    server: Running, ending: str, tmp_path: Path
) -> None:
    """The exit status is 0, however a stream ends whose source is in native code.

    gRPC reads the source in its own thread, which must not return to Python after the interpreter
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
def test_a_malformed_token_is_not_printed(topwork: Command, server: Running, wrong: str) -> None:
    """The error has the position of the invalid character, and no part of the token."""
    secret = "topwork_0123456789ab_" + 8 * "s3cret"
    status, output, errors = topwork("models", "--token", f"{secret}{wrong}{secret}")
    assert (status, output) == (1, "")
    assert f"at position {len(secret) + 1}" in errors
    assert "s3cret" not in errors
    with pytest.raises(InvalidInput):
        AsyncClient(server.address, Credentials(token=secret + wrong))
