"""Encoder process: decodes and embeds one item after the other."""

from __future__ import annotations

import socket
import threading
from multiprocessing.connection import Connection

from topwork.errors import NotReady
from topwork.limits import InputLimits
from topwork.runtime.providers import Provider
from topwork.runtime.relay import Format
from topwork.serving.encoders.decoding import cancelled, text_of
from topwork.serving.encoders.messages import (
    REQUESTS,
    Cancel,
    Encode,
    Load,
    Loaded,
    NotLoaded,
    Request,
    Unload,
)
from topwork.serving.encoders.pipeline import Embeddable, Pipeline
from topwork.serving.encoders.process_loop import ProcessLoop, connect


def run(
    parent: Connection,
    limits: InputLimits,
    log_format: Format,
    most_growth: int,
    *,
    provider: Provider,
) -> None:
    """Encode the items that arrive through the pipe ``parent``; exit when it closes."""
    link = connect(parent, log_format)
    EncoderLoop(link, Pipeline(provider=provider, limits=limits), most_growth).run()


class EncoderLoop(ProcessLoop[Encode, Request]):
    """Loop of a process that has backbones."""

    def __init__(self, link: socket.socket, pipeline: Pipeline, most_growth: int) -> None:
        super().__init__(link, REQUESTS, most_growth)
        self._pipeline = pipeline
        self._loading: list[threading.Thread] = []
        """Loads in progress, which take memory for a time."""

    def _work(self, task: Encode) -> None:
        decoded = self._pipeline.decode(task.item)
        if self._is_cancelled(task.item):
            self._send(cancelled(task.item))
        elif isinstance(decoded, Embeddable):
            decoded.embed(self._send, wide=task.wide)
        else:
            self._send(decoded)

    def _is_loading(self) -> bool:
        self._loading = [thread for thread in self._loading if thread.is_alive()]
        return bool(self._loading)

    def _take(self, message: Request) -> None:
        match message:
            case Encode():
                self._waiting.append(message)
            case Cancel():
                self._cancel(message.id)
            case Load():  # in a thread, since images of other models must not wait
                thread = threading.Thread(target=self._load, args=(message,), daemon=True)
                self._loading.append(thread)
                thread.start()
            case Unload():
                self._pipeline.unload(message.digest)
                self._base = None

    def _load(self, message: Load) -> None:
        digest = message.info.digest
        try:
            backbone = self._pipeline.load(message.info, message.model, cores=message.cores)
        except Exception as error:
            missing = isinstance(error, NotReady)
            self._send(NotLoaded(digest=digest, message=text_of(error), provider_missing=missing))
        else:
            one_core, all_cores = backbone.seconds
            self._send(
                Loaded(digest=digest, one_core=one_core, all_cores=all_cores, check=backbone.check)
            )
        self._base = None
