"""Client credentials: TLS and mTLS certificates, and a bearer token in the metadata of calls."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeAlias, TypeVar, cast

import grpc

from topwork.errors import InvalidInput
from topwork.wire.loopback import is_loopback

_NOT_IN_TOKENS = re.compile(r"[^!-~]")

Metadata: TypeAlias = tuple[tuple[str, str], ...]
C = TypeVar("C", grpc.Channel, grpc.aio.Channel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Credentials of a ``Client`` or ``AsyncClient``."""

    tls: bool = False
    """True to use TLS."""
    ca: bytes | None = None
    """PEM of the CA that signed the server's certificate; None: gRPC's default CAs."""
    certificate: bytes | None = None
    """PEM of the client's certificate and the intermediate certificates (mTLS)."""
    key: bytes | None = field(default=None, repr=False)
    """PEM of the private key of ``certificate``."""
    server_name: str = ""
    """Name in the certificates of the servers; empty: the host of the address. An address that
    lists several servers needs it with TLS."""
    token: str = field(default="", repr=False)
    """Bearer token. Sent only over TLS, or to an address of this host."""

    @classmethod
    def from_files(
        cls,
        *,
        tls: bool = False,
        tls_ca: Path | None = None,
        client_cert: Path | None = None,
        client_key: Path | None = None,
        server_name: str = "",
        token: str = "",
    ) -> Self:
        """Return credentials read from PEM files. Raises InvalidInput."""
        if (client_cert is None) != (client_key is None):
            raise InvalidInput("client_cert and client_key go together", field="client_key")
        return cls(
            tls=tls or tls_ca is not None or client_cert is not None,
            ca=_read("tls_ca", tls_ca),
            certificate=_read("client_cert", client_cert),
            key=_read("client_key", client_key),
            server_name=server_name,
            token=token,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """Return gRPC's credentials of a channel; None: plaintext."""
        if not self.tls:
            return None
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)

    def channel_options(self) -> list[tuple[str, Any]]:
        """Return gRPC's options of a channel with these credentials."""
        return [("grpc.ssl_target_name_override", self.server_name)] if self.server_name else []

    def open_channel(self, address: str, options: Sequence[tuple[str, Any]]) -> grpc.Channel:
        """Return a blocking channel, without the metadata of calls."""
        options = [*options, *self.channel_options()]
        if (secure := self.channel_credentials()) is not None:
            return grpc.secure_channel(address, secure, options=options)
        return grpc.insecure_channel(address, options=options)

    def metadata(self, address: str) -> Metadata:
        """Return the metadata of every call to ``address``.

        Raises InvalidInput if the token would go to another host in plaintext, or is malformed.
        """
        if not self.token:
            return ()
        # Checked here, because gRPC's error would show the whole token.
        if (match := _NOT_IN_TOKENS.search(self.token)) is not None:
            raise InvalidInput(
                f"the token, of {len(self.token)} characters, has a space, a line end or another "
                f"character that no token has at position {match.start() + 1}",
                field="token",
            )
        if not (self.tls or is_loopback(address)):
            raise InvalidInput(
                f"a token would go to {address} in plaintext; use TLS", field="token"
            )
        return (("authorization", f"Bearer {self.token}"),)


ANONYMOUS = Credentials()
"""Plaintext, without a token."""


def with_metadata(channel: C, metadata: Metadata) -> C:
    """Return ``channel``, blocking or not, whose stubs add ``metadata`` to every call."""
    return cast("C", _MetadataChannel(channel, metadata)) if metadata else channel


class _MetadataChannel:
    """The methods of a channel that stubs use."""

    def __init__(self, channel: grpc.Channel | grpc.aio.Channel, metadata: Metadata) -> None:
        self._channel = channel
        self._metadata = metadata
        self.unary_unary = self._make("unary_unary")
        self.unary_stream = self._make("unary_stream")
        self.stream_unary = self._make("stream_unary")
        self.stream_stream = self._make("stream_stream")

    def _make(self, kind: str) -> Callable[..., Any]:
        def make(*arguments: Any, **options: Any) -> _MetadataMethod:
            method = getattr(self._channel, kind)(*arguments, **options)
            return _MetadataMethod(method, self._metadata)

        return make


class _MetadataMethod:
    """A method of a stub that adds metadata to its calls."""

    def __init__(self, method: Any, metadata: Metadata) -> None:
        self._method = method
        self._metadata = metadata

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._method(*arguments, metadata=self._metadata, **options)

    def future(self, *arguments: Any, **options: Any) -> Any:
        """See grpc.StreamUnaryMultiCallable; asyncio's stubs have no such method."""
        return self._method.future(*arguments, metadata=self._metadata, **options)


def _read(field_name: str, path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        text = f"{field_name} {str(path)!r} cannot be read: {error.strerror}"
        raise InvalidInput(text, field=field_name) from error
