"""How a client shows who it is, and whom it trusts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeAlias, TypeVar, cast

import grpc

from topwork.errors import InvalidInput
from topwork.wire.loopback import is_loopback

_NO_TOKEN = re.compile(r"[^!-~]")

Metadata: TypeAlias = tuple[tuple[str, str], ...]
C = TypeVar("C", grpc.Channel, grpc.aio.Channel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What ``Client`` and ``AsyncClient`` are given beside the address."""

    tls: bool = False
    """Whether to speak TLS."""
    ca: bytes | None = None
    """PEM of who signed the server's certificate; None: the well-known authorities."""
    certificate: bytes | None = None
    """PEM of the client's own certificate and those between it and its authority."""
    key: bytes | None = field(default=None, repr=False)
    """PEM of its private key."""
    token: str = field(default="", repr=False)
    """Bearer token. Only sent over TLS, or to this host itself."""

    @classmethod
    def from_files(
        cls,
        *,
        tls: bool = False,
        tls_ca: Path | None = None,
        client_cert: Path | None = None,
        client_key: Path | None = None,
        token: str = "",
    ) -> Self:
        """Return credentials whose parts are in PEM files. Raises InvalidInput."""
        if (client_cert is None) != (client_key is None):
            raise InvalidInput("client_cert and client_key go together", field="client_key")
        return cls(
            tls=tls or tls_ca is not None or client_cert is not None,
            ca=_content("tls_ca", tls_ca),
            certificate=_content("client_cert", client_cert),
            key=_content("client_key", client_key),
            token=token,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """Return what a channel is opened with; None: plaintext."""
        if not self.tls:
            return None
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)

    def open_channel(self, address: str, options: Sequence[tuple[str, Any]]) -> grpc.Channel:
        """Return a blocking channel, whose calls bear no metadata."""
        if (secure := self.channel_credentials()) is not None:
            return grpc.secure_channel(address, secure, options=options)
        return grpc.insecure_channel(address, options=options)

    def metadata(self, address: str) -> Metadata:
        """Return what every call to ``address`` bears.

        Raises InvalidInput if the token would go to another host in plaintext, or can be none.
        """
        if not self.token:
            return ()
        # gRPC would show the whole token in its error.
        if (wrong := _NO_TOKEN.search(self.token)) is not None:
            raise InvalidInput(
                f"the token, of {len(self.token)} characters, has a space, a line end or another "
                f"character that no token has at position {wrong.start() + 1}",
                field="token",
            )
        if not (self.tls or is_loopback(address)):
            raise InvalidInput(
                f"a token would go to {address} in plaintext; use TLS", field="token"
            )
        return (("authorization", f"Bearer {self.token}"),)


NOTHING = Credentials()
"""Plaintext, and nobody in particular."""


def bearing(channel: C, metadata: Metadata) -> C:
    """Return ``channel``, blocking or not, so that all calls of stubs bear ``metadata``."""
    return cast("C", _Bearing(channel, metadata)) if metadata else channel


class _Bearing:
    """What a stub uses of a channel."""

    def __init__(self, channel: grpc.Channel | grpc.aio.Channel, metadata: Metadata) -> None:
        self._channel = channel
        self._metadata = metadata
        self.unary_unary = self._make("unary_unary")
        self.unary_stream = self._make("unary_stream")
        self.stream_unary = self._make("stream_unary")
        self.stream_stream = self._make("stream_stream")

    def _make(self, kind: str) -> Callable[..., Any]:
        def make(*arguments: Any, **named: Any) -> _BearingMethod:
            method = getattr(self._channel, kind)(*arguments, **named)
            return _BearingMethod(method, self._metadata)

        return make


class _BearingMethod:
    """What clients use of a stub's method."""

    def __init__(self, method: Any, metadata: Metadata) -> None:
        self._method = method
        self._metadata = metadata

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._method(*arguments, metadata=self._metadata, **named)

    def future(self, *arguments: Any, **named: Any) -> Any:
        """See grpc.StreamUnaryMultiCallable; asyncio's methods have none."""
        return self._method.future(*arguments, metadata=self._metadata, **named)


def _content(field_name: str, path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        text = f"{field_name} {str(path)!r} cannot be read: {error.strerror}"
        raise InvalidInput(text, field=field_name) from error
