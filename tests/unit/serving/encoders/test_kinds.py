"""Encoders of every implementation with a backbone of texts, beside one of images."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

import numpy as np
import pytest
from support import encoders, kinds, texts
from support.encoders import Harness
from support.kinds import KINDS, Sample

from topwork.bundle.store import Repository
from topwork.limits import DEFAULT_LIMITS
from topwork.runtime.backend import open_session
from topwork.serving.encoders.encoder import Encoded, Refused

with_backbones = pytest.mark.parametrize(
    "sample", [sample for sample in KINDS if sample.kind.latest_probes], ids=kinds.name_of
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository with a model of each kind."""
    return kinds.repository(tmp_path_factory.mktemp("encoders") / "repository")


def started(name: str) -> AbstractAsyncContextManager[Harness]:
    """Return an encoder of an implementation, started with backbones of images."""
    return encoders.started(encoders.make_encoder(name))


@pytest.mark.parametrize("name", ["threads", "processes", "gpu"])
@with_backbones
def test_inputs_of_all_lengths_are_embedded(
    name: str, sample: Sample, repository: Repository
) -> None:
    """Many at once, among images; each gets the embedding of its own, and bad ones are refused."""
    info = kinds.backbone(repository, sample)
    model = repository.backbone_model(info.digest)
    contents = [
        *sample.contents(sample.labels[0], 10, 0),
        *(b"salt pan " * (1 + n) if sample is kinds.TEXT else content for n, content in
          enumerate(sample.contents(sample.labels[1], 10, 0))),
    ]  # fmt: skip
    session = open_session(model, output="embedding")

    async def scenario() -> None:
        async with started(name) as harness:
            loaded = await harness.encoder.load(info, lambda: model)
            assert loaded.agreement is None or loaded.agreement > 0.999
            photos = [harness.submit(photo) for photo in encoders.PHOTOS]
            items = [harness.submit(content, digest=info.digest) for content in contents]
            bad = harness.submit(sample.bad[0], digest=info.digest)
            for content, item in zip(contents, items, strict=True):
                found = await harness.result(item)
                assert isinstance(found, Encoded)
                array = sample.kind.prepare(content, sample.spec, limits=DEFAULT_LIMITS)
                expected = session.run(array[None])[0]
                assert np.allclose(np.frombuffer(found.embedding, "<f4"), expected, atol=1e-6)
            refused = await harness.result(bad)
            assert isinstance(refused, Refused)
            assert (refused.reason, sample.bad[2] in refused.message) == (sample.bad[1], True)
            for photo in photos:
                assert isinstance(await harness.result(photo), Encoded)
            harness.encoder.unload(info.digest)

    asyncio.run(scenario())


def test_probes_of_texts_have_several_lengths() -> None:
    """A GPU cannot stack them to a batch: it runs them one by one."""
    spec = texts.spec()
    probes = kinds.TEXT.kind.probes(kinds.TEXT.kind.latest_probes, spec)
    assert len({len(probe) for probe in probes}) > 1
