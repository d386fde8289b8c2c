"""Types of options for addresses and URLs, checked before a command starts."""

from __future__ import annotations

import click

from topwork.errors import InvalidInput
from topwork.wire.addresses import parse

SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix-abstract:", "vsock:", "xds:")
"""Schemes of names that gRPC clients resolve, besides HOST:PORT and unix:PATH."""


class Address(click.ParamType[str]):
    """HOST:PORT, [IPv6]:PORT or unix:PATH, returned unchanged.

    ``of_client`` accepts the names of SCHEMES, too. ``optional`` accepts an empty text.
    ``lone_port`` accepts a port of the loopback.
    """

    name = "address"

    def __init__(
        self, *, of_client: bool = False, optional: bool = False, lone_port: bool = False
    ) -> None:
        self._of_client = of_client
        self._optional = optional
        self._lone_port = lone_port

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """See click."""
        address = f"127.0.0.1:{value}" if self._lone_port and value.isdecimal() else value
        if (self._optional and not address) or (self._of_client and address.startswith(SCHEMES)):
            return address
        try:
            parsed = parse(address)
        except InvalidInput as error:
            self.fail(str(error), param, ctx)
        if self._of_client and parsed is not None and parsed.port == 0:
            self.fail(f"{address!r} has port 0, which nobody can call", param, ctx)
        return address


def check_url(context: click.Context, option: click.Parameter, url: str) -> str:
    """Return a URL or an empty text unchanged; a callback for click."""
    if url and "://" not in url:
        raise click.BadParameter(f"{url!r} is no URL: it has no scheme://", context, option)
    return url
