"""Picklable batch functions for data engines: ``Classifier`` and ``Embedder``.

Ray Data, Daft, Spark and Dask copy a function to many processes, and call it with batches of
rows; docs/batch.md has examples. A process opens a model at its first batch and keeps it
for all later ones, also if the function is copied again. The answers are those of
``topwork.open``, byte for byte.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from numbers import Real
from typing import Any, TypeAlias, TypedDict, TypeVar, Unpack, cast, overload

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.opening import open_repository
from topwork.bundle.signing.signatures import SigningFiles
from topwork.client.images import ImageLike, check_several
from topwork.client.inputs import Audio, Text
from topwork.client.results import ImageResult
from topwork.errors import InvalidInput
from topwork.in_order import in_order
from topwork.inputs.kinds import AUDIO, TEXT
from topwork.local import AHEAD, EmbeddedInput, Model
from topwork.opened_models import ModelKey, open_once
from topwork.serving.classifier import DEFAULT_TOP_K
from topwork.storage.location import absolute, to_location

T = TypeVar("T")

Columns: TypeAlias = Mapping[str, Sequence[Any] | NDArray[Any]]
"""Batch of rows: values by the name of their column, as many in each."""

_ITEM_ERRORS = (OSError, TypeError, ValueError, InvalidInput)
"""Errors of one item: a file that cannot be read, a value that is no input of the model."""


class Options(TypedDict, total=False):
    """Options of both functions; see ``Embedder``."""

    column: str
    drop: Collection[str]
    prefix: str
    revision: int
    threads: int
    signing: SigningFiles


class _Function(ABC):
    """Function of a batch: reads the inputs' column, and adds columns of answers."""

    def __init__(
        self,
        repository: str | os.PathLike[str],
        model: str,
        *,
        column: str = "image",
        drop: Collection[str] = (),
        prefix: str = "",
        revision: int = 0,
        threads: int = 1,
        signing: SigningFiles = SigningFiles(),  # noqa: B008 # frozen, so it can be shared
    ) -> None:
        if threads < 1:
            raise InvalidInput(f"threads is {threads}; it must be at least 1", field="threads")
        location = absolute(to_location(repository))  # workers have other working directories
        revision = revision or open_repository(location).serving(model)
        self._key = ModelKey(str(location), model, revision, signing)
        self._column = column
        self._drop = tuple(drop)
        self._prefix = prefix
        self._threads = threads

    def __repr__(self) -> str:
        name = f"{type(self).__name__} {self._key.model} revision {self._key.revision}"
        return f"<{name} of the column {self._column!r}>"

    @property
    def revision(self) -> int:
        """Number of the revision that all processes use."""
        return self._key.revision

    @overload
    def __call__(self, batch: Columns) -> dict[str, Any]: ...

    @overload
    def __call__(self, batch: Sequence[Any]) -> list[dict[str, Any]]: ...

    def __call__(self, batch: Columns | Sequence[Any]) -> dict[str, Any] | list[dict[str, Any]]:
        """Return the columns of a batch with those of the answers, in the order of the rows.

        A list of inputs gives a list of rows, a dictionary each, without the inputs. Raises
        InvalidInput if the column of inputs is missing, or an added column exists already, and
        TypeError for a data frame, a table, or a single input.
        """
        if not isinstance(batch, Mapping):
            _check_list(batch)
            return _rows(self._answers(batch))
        if self._column not in batch:
            raise InvalidInput(
                f"the batch has no column {self._column!r}; its columns are "
                f"{', '.join(map(repr, batch))}",
                field="column",
            )
        passed = {name: values for name, values in batch.items() if name not in self._drop}
        added = self._answers(batch[self._column])
        if both := sorted(passed.keys() & added.keys()):
            raise InvalidInput(
                f"the batch has columns named like answers: {', '.join(both)}; give a prefix",
                field="prefix",
            )
        return {**passed, **added}

    def _answers(self, items: Iterable[Any]) -> dict[str, Any]:
        model = open_once(self._key)
        columns = self._columns(model, items)
        return {f"{self._prefix}{name}": values for name, values in columns.items()}

    @abstractmethod
    def _columns(self, model: Model, items: Iterable[Any]) -> dict[str, Any]:
        """Return the columns of the answers to ``items``, without prefix."""

    def _each(
        self, model: Model, items: Iterable[Any], answer: Callable[[ImageLike], T]
    ) -> list[T | str]:
        """Return the answer to each item, or the text of its error."""

        def work(item: Any) -> T | str:
            try:
                return answer(_input(item, model.kind))
            except _ITEM_ERRORS as error:
                return _message(error)

        ahead = AHEAD * self._threads
        with closing(in_order(work, items, threads=self._threads, ahead=ahead)) as done:
            return [result for _, result in done]


class Classifier(_Function):
    """Function that classifies the inputs in a column of a batch.

    ``options`` are those of ``Embedder``.

    Adds the columns ``labels`` (a list of str, the most probable first) and ``probabilities`` (a
    list of float), at most ``top_k`` of each, ``unknown_probability`` (float; NaN if the model has
    no estimate), ``is_unknown`` (bool), ``revision`` (int) and ``error`` (str; empty: none). A row
    with an error has empty lists.
    """

    def __init__(
        self,
        repository: str | os.PathLike[str],
        model: str,
        *,
        top_k: int = DEFAULT_TOP_K,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(repository, model, **options)
        if top_k < 1:
            raise InvalidInput(f"top_k is {top_k}; it must be at least 1", field="top_k")
        self._top_k = top_k

    def _columns(self, model: Model, items: Iterable[Any]) -> dict[str, Any]:
        found = self._each(model, items, lambda item: model.result(item, top_k=self._top_k))
        results = [None if isinstance(result, str) else result for result in found]
        unknown = [result.unknown_probability if result else None for result in results]
        return {
            "labels": [[each.label for each in _predictions(result)] for result in results],
            "probabilities": [
                [each.probability for each in _predictions(result)] for result in results
            ],
            "unknown_probability": np.array(
                [np.nan if value is None else value for value in unknown], dtype=np.float64
            ),
            "is_unknown": np.array([bool(result and result.is_unknown) for result in results]),
            "revision": np.full(len(results), model.revision, dtype=np.int64),
            "error": [_error(result) for result in found],
        }


class Embedder(_Function):
    """Function that embeds the inputs in a column of a batch with the backbone of a model.

    Adds the columns ``embedding`` (float32 (D,); NaN if there is an error), ``digest`` (str, the
    input's digest in hexadecimal, by which exemplars are found; empty if there is an error) and
    ``error`` (str; empty: none).

    ``column`` names the inputs: encoded images (bytes), paths of image files, decoded images
    (uint8 (H, W, 3) or (H, W)), embeddings (float32 (D,), or lists of numbers), texts (strings,
    if the model takes texts), or recordings (bytes, or paths of audio files). ``drop`` names
    columns that are not passed on, such as that of the encoded images. ``prefix`` begins the names
    of the added columns. ``revision`` 0 is the serving one at the time the object is made, so that
    all processes use the same one. ``threads`` is the
    number of inputs that a process works on at a time: give an engine's worker as many cores.
    ``signing`` has the files of trusted keys.

    Raises NotFound if there is no such model, NotReady if the revision was rejected, Corrupt if it
    is damaged or not signed as it must be.
    """

    def _columns(self, model: Model, items: Iterable[Any]) -> dict[str, Any]:
        found = self._each(model, items, model.embed)
        embeddings = np.full((len(found), model.width), np.nan, dtype=np.float32)
        for row, result in enumerate(found):
            if isinstance(result, EmbeddedInput):
                embeddings[row] = result.embedding
        return {
            "embedding": embeddings,
            "digest": ["" if isinstance(result, str) else result.digest for result in found],
            "error": [result if isinstance(result, str) else "" for result in found],
        }


def _check_list(batch: object) -> None:
    """Raise TypeError for what is no list: iterating over a data frame would give its columns."""
    if hasattr(batch, "columns") or hasattr(batch, "column_names"):
        raise TypeError(
            f"the batch is {type(batch).__name__}: pass a dictionary of columns, as Ray's "
            "batch_format='numpy' and frame.to_dict('list') give"
        )
    check_several(batch)


def _rows(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return columns as rows of Python's values; those of a matrix stay arrays."""
    values = [
        column.tolist() if isinstance(column, np.ndarray) and column.ndim == 1 else column
        for column in columns.values()
    ]
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def _input(item: Any, kind: str) -> ImageLike:
    """Return a value of a column as ``topwork.open`` takes it. Raises ValueError, TypeError."""
    if item is None or (isinstance(item, float) and np.isnan(item)):
        raise ValueError("the input is missing")
    if isinstance(item, str) and kind == TEXT.name:
        return Text(item)
    if isinstance(item, bytes | bytearray | memoryview):
        return Audio(bytes(item)) if kind == AUDIO.name else bytes(item)
    if isinstance(item, list | tuple) and all(isinstance(value, Real) for value in item):
        return np.array(item, dtype=np.float32)
    return cast("ImageLike", item)


def _predictions(result: ImageResult | None) -> Sequence[Any]:
    return () if result is None else result.predictions


def _error(result: ImageResult | str) -> str:
    if isinstance(result, str):
        return result
    return "" if result.error is None else result.error.message


def _message(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"the file cannot be read: {error.strerror or error}"
    return str(error)
