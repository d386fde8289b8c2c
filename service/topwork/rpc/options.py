"""Channel options of the servers.

gRPC silently ignores options that it does not know, and some that it knows. So each option has a
test of its behaviour in ``tests/unit/rpc/test_options.py``; the client's are in ``client.calls``.
"""

from __future__ import annotations

from typing import TypeAlias

Options: TypeAlias = list[tuple[str, int]]

CALLS_A_CONNECTION = 1024
"""Raising it allows more concurrent calls on a connection; the client's gRPC queues the rest."""

HEALTH_BYTES = 4096
"""Longest message to the health port; a request has the name of one service."""


def of_server(
    message_bytes: int, *, connection_seconds: float | None = None, channelz: bool = False
) -> Options:
    """Return the options of a server whose messages have at most ``message_bytes``.

    Connections last at most ``connection_seconds``; None: without limit.
    """
    options = [
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_send_message_length", message_bytes),
        # gRPC unpacks a message to its end before it looks at the limit: 64 MiB become 64 GiB.
        ("grpc.compression_enabled_algorithms_bitset", 1),  # 1 << identity
        # A second server on the port is an error, not a silent half of the traffic.
        ("grpc.so_reuseport", 0),
        ("grpc.max_concurrent_streams", CALLS_A_CONNECTION),
        # By default pings more often than every 5 minutes end the connection, and its calls.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Streams of a client that vanished end. It has gRPC's 60 s to answer.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.enable_channelz", int(channelz)),
    ]
    if connection_seconds is not None:
        options.append(("grpc.max_connection_age_ms", round(connection_seconds * 1e3)))
    return options
