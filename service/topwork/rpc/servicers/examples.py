"""Pages and single examples of models, and reports of revisions, as messages."""

from __future__ import annotations

import asyncio
import hashlib
import re
import unicodedata
from functools import partial

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.examples import ExampleIndex
from topwork.bundle.manifest import Manifest
from topwork.bundle.store import Repository
from topwork.errors import InvalidInput, NotFound
from topwork.rpc import filters
from topwork.rpc.convert import fields
from topwork.rpc.convert.examples import to_example
from topwork.rpc.servicers.pages import Page, page_range
from topwork.serving.examples import ExampleFilter, Examples, Pattern, readable, select
from topwork.serving.registry import Registry
from topwork.v1 import example_pb2 as example_pb
from topwork.v1 import revision_pb2 as revision_pb

_TOKEN = re.compile(r"([1-9][0-9]{0,17})\.([0-9]{1,9})\.([0-9a-f]{16})", re.ASCII)


class ExampleViews:
    """Reads the examples of models, and the reports that show them, for a servicer."""

    def __init__(self, repository: Repository, registry: Registry, examples: Examples) -> None:
        self._repository = repository
        self._registry = registry
        self._examples = examples

    async def page(
        self, request: example_pb.ListExamplesRequest
    ) -> example_pb.ListExamplesResponse:
        """Return a page of a list. Raises InvalidInput, NotFound, Corrupt, Unavailable."""
        model = fields.model_id(request.model, field="model")
        wanted = filters.parse_examples(request.filter)
        revision = fields.number(request.revision, field="revision")
        # Binds a page token to the list that it belongs to.
        listed = f"{model}\0{request.filter}\0{revision}".encode()
        stamp = hashlib.sha256(listed).hexdigest()[:16]
        token = _TOKEN.fullmatch(request.page_token)
        if request.page_token and (token is None or token[3] != stamp):
            raise InvalidInput(
                f"page_token {request.page_token[:80]!r} was not given for this list",
                field="page_token",
            )
        start, size = page_range(request.page_size, token[2] if token is not None else "")
        try:
            manifest = await self._manifest(model, int(token[1]) if token is not None else revision)
        except NotFound as missing:
            if token is None or missing.kind != "revision":
                raise
            text = f"revision {token[1]}, which page_token lists, was deleted: list again"
            raise InvalidInput(text, field="page_token", reason="REVISION_DELETED") from missing
        index = await self._examples.index(manifest)
        rows = await asyncio.to_thread(select, index, manifest, wanted)
        full = request.view == example_pb.EXAMPLE_VIEW_FULL
        page = Page[example_pb.Example](start, size)
        for message in await self._messages(manifest, index, rows[start : start + size], full=full):
            if not page.add(message):
                break
        after = start + len(page.messages)
        return example_pb.ListExamplesResponse(
            examples=page.messages,
            next_page_token=f"{manifest.revision}.{after}.{stamp}" if after < len(rows) else "",
            total_size=len(rows),
            revision=manifest.revision,
        )

    async def example(self, request: example_pb.GetExampleRequest) -> example_pb.Example:
        """Return an example. Raises InvalidInput, NotFound, Corrupt, Unavailable."""
        model, digest = fields.example_ids(request.name)
        revision = fields.number(request.revision, field="revision")
        manifest = await self._manifest(model, revision)
        index = await self._examples.index(manifest)
        wanted = ExampleFilter(
            label=unicodedata.normalize("NFC", request.label) if request.label else None,
            digest=Pattern(text=digest, prefix=False),
        )
        rows = await asyncio.to_thread(select, index, manifest, wanted)
        if not len(rows):
            under = f" with the label {request.label[:80]!r}" if request.label else ""
            raise NotFound(
                f"model {model!r} has no example {digest}{under}",
                kind="example",
                resource=f"models/{model}/examples/{digest}",
            )
        full = request.view != example_pb.EXAMPLE_VIEW_BASIC
        (message,) = await self._messages(manifest, index, rows[:1], full=full)
        return message

    async def report(self, request: revision_pb.GetReportRequest) -> revision_pb.Report:
        """Return a revision's report. Raises InvalidInput, NotFound, Corrupt, Unavailable."""
        model, revision = fields.report_ids(request.name)
        manifest = await self._manifest(model, revision)
        html = await readable(partial(asyncio.to_thread, self._repository.report, manifest))
        return revision_pb.Report(name=f"{fields.revision_name(model, revision)}/report", html=html)

    async def _manifest(self, model: str, revision: int) -> Manifest:
        """Return the manifest of a revision; 0: the serving one. Raises NotFound, Corrupt."""
        serving = self._registry.serving(model)
        if revision in {0, serving.revision}:
            return serving
        return await asyncio.to_thread(self._repository.manifest, model, revision)

    async def _messages(
        self, manifest: Manifest, index: ExampleIndex, rows: NDArray[np.int64], *, full: bool
    ) -> list[example_pb.Example]:
        numbers: list[int] = rows.tolist()
        details = await self._examples.details(manifest, index, numbers) if full else None

        def convert() -> list[example_pb.Example]:
            return [
                to_example(manifest, index, row, None if details is None else details[place])
                for place, row in enumerate(numbers)
            ]

        return await asyncio.to_thread(convert)  # a page of 1,000 takes some 10 ms
