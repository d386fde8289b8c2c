"""Interface of the encoders: plain data goes in and comes out, so that it can cross processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from topwork.bundle.manifest import BackboneInfo
from topwork.inputs.image import WHOLE, Region

NICE = 2
"""Niceness of threads and processes; raising it gives the event loop a higher priority."""


class Item(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One image to decode and embed."""

    id: int
    """Unique among the items of an encoder."""
    backbone: str
    """Digest of a loaded backbone."""
    content: bytes
    """Encoded image, or preprocessed pixels."""
    pixels: bool = False
    """True if ``content`` is preprocessed: uint8 (crop, crop, 3) in C order."""


class MicroBatch(msgspec.Struct, frozen=True, kw_only=True, weakref=True, eq=False):
    """Run of several images, which share this object."""

    start: float
    """Start (time.perf_counter(), which all processes of a host share)."""
    seconds: float
    images: int


class Encoded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Embedding of an item, with its timings in seconds."""

    id: int
    embedding: bytes
    """float32 (D,)"""
    started: float
    """Start of decoding (time.perf_counter())."""
    decoded: float
    """Decoding and preprocessing."""
    waited: float
    """From the end of decoding to the start of the run."""
    computed: float
    """Backbone: this image's share of its run."""
    run: MicroBatch | None = None
    """None on a CPU, where each image has its own run."""
    region: Region = WHOLE
    """The part of the upright image that was embedded."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """Result of the check of a backbone on this host."""

    agreement: float | None
    """The least of all sessions; see ``topwork.runtime.agreement``. None: it cannot be checked."""
    provider: str
    """ONNX Runtime's name of the provider that the backbone runs on."""


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Item whose image is not usable; see ImageError."""

    id: int
    message: str
    reason: str
    started: float
    """Start of decoding (time.perf_counter())."""
    decoded: float
    """Seconds until the image was refused."""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Item that was not embedded for a reason other than its image."""

    id: int
    message: str
    stopping: bool = False
    """True if the encoder is stopping, or the item was cancelled."""


Result = Encoded | Refused | Failed
Deliver = Callable[[Result], None]
"""Callback with the result of an item."""


class Encoder(Protocol):
    """Encoder of images with the cores or the GPU of this host. All calls belong to one event loop.

    Its owner keeps the queue. ``credits`` limits the items that are handed over, so that order,
    deadlines and cancellation of the queue hold.
    """

    async def start(self, deliver: Deliver, on_credit: Callable[[], None]) -> None:
        """Start the threads or processes.

        ``deliver`` gets each item's result, once; ``on_credit`` is called when there are credits
        without a result.
        """

    async def aclose(self) -> None:
        """Stop them. Items that are not delivered yet are Failed."""

    async def load(self, info: BackboneInfo, model: Callable[[], bytes]) -> Check:
        """Load, warm and check a backbone; ``model`` returns its graph, in any thread, at any time.

        Each load needs its own ``unload``. Raises Corrupt, NotReady, the errors of ``model``, and
        ConnectionError if that is impossible for now.
        """

    def unload(self, digest: str) -> None:
        """Release a backbone; the last release frees its memory."""

    def credits(self, requests: int) -> int:
        """Return the number of items that may be submitted now, while ``requests`` wait.

        It may grow with them: the longer the queue, the less a few items at its head matter.
        """

    def submit(self, item: Item, *, present: int) -> None:
        """Encode an item; ``present`` images wait or are in progress, including this one."""

    def cancel(self, identifier: int) -> None:
        """Drop an item if it is not in progress yet. It may be delivered nevertheless."""

    def works(self) -> bool:
        """Return True if items are encoded now."""
