"""Fuzz target of training data: photos or texts that can be read one by one, or InvalidInput."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile

from fuzz import sandbox
from topwork.errors import ImageError, InvalidInput
from topwork.printable import printable
from topwork_trainer.data import scan

PATHS = ("a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg")
"""Photos beside the fuzzed file."""

NAMES = (
    *("1.csv", "1.tsv", "1.jsonl", "1.json", "1.zip", "1.tar", "1.tgz", "1.parquet"),
    "1.fasta",
)
"""Names of the fuzzed file; the first byte of an input is an index."""


def read(content: bytes) -> None:
    """Scan any bytes as a manifest, a table of texts, an archive or FASTA, and read its rows."""
    folder = sandbox.directory() / "data"
    if not folder.is_dir():
        for path in PATHS:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(b"\0" + path.encode())
    name = NAMES[content[0] % len(NAMES)] if content else NAMES[0]
    file = folder / name
    file.write_bytes(content[1:])
    try:
        photos = scan(file)
    except InvalidInput as error:
        _check(str(error))
        return
    finally:
        file.unlink()
    for photo in photos.train:
        try:
            assert isinstance(photo.read(), bytes)
        except ImageError as error:
            _check(str(error))


def _check(message: str) -> None:
    """Check that an error can be shown in a terminal."""
    assert message == printable(message), ascii(message)
    assert len(message) < 1000, message


def seeds() -> list[bytes]:
    """Return a small file of each kind."""
    rows = [{"path": path, "label": path[0], "split": "train"} for path in PATHS]
    coco = {
        "images": [{"id": number, "file_name": path} for number, path in enumerate(PATHS)],
        "annotations": [{"image_id": n, "category_id": n // 2} for n in range(len(PATHS))],
        "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
    }
    tasks = [
        {
            "id": number,
            "data": {"image": f"/data/local-files/?d={path}"},
            "annotations": [{"result": [{"type": "choices", "value": {"choices": [path[0]]}}]}],
        }
        for number, path in enumerate(PATHS)
    ]
    minimal = [
        {"id": number, "annotation_id": number, "image": path, "choice": path[0]}
        for number, path in enumerate(PATHS)
    ]
    texts = [{"text": f"text {n}", "label": "ab"[n % 2], "group": f"{n}"} for n in range(12)]
    sequences = "".join(f">s{n} {'ab'[n % 2]}\nACGT\nTT{'ACGT'[n % 4]}\n" for n in range(12))
    made: dict[str, list[bytes]] = {
        "1.fasta": [sequences.encode()],
        "1.csv": [b"path,label,group\n" + b"".join(f"{p},{p[0]},g\n".encode() for p in PATHS)],
        "1.tsv": [b"path\tlabel\n" + b"".join(f"a\\{p}\t{p[0]}\n".encode() for p in PATHS)],
        "1.jsonl": [b"\n".join(json.dumps(row).encode() for row in each) for each in (rows, texts)],
        "1.json": [
            json.dumps(document).encode() for document in (rows, coco, tasks, minimal, texts)
        ],
        "1.zip": [_zipped()],
        "1.tar": [_tarred("w")],
        "1.tgz": [_tarred("w:gz")],
        "1.parquet": [_parquet()],
    }
    return [bytes([NAMES.index(name)]) + file for name, files in made.items() for file in files]


def _zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path in PATHS:
            archive.writestr(path, b"\0photo")
    return file.getvalue()


def _tarred(mode: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]  # a str
        for path in PATHS:
            info = tarfile.TarInfo(path)
            info.size = 6
            archive.addfile(info, io.BytesIO(b"\0photo"))
    return file.getvalue()


def _parquet() -> bytes:
    """Return a data set with images; empty if pyarrow, an extra, is not installed."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        return b""
    file = io.BytesIO()
    images = [{"bytes": b"\0photo", "path": path} for path in PATHS]
    table = pa.table({"image": images, "label": [path[0] for path in PATHS]})
    parquet.write_table(table, file)
    return file.getvalue()
