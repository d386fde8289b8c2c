"""Asks a server how it is, as a supervisor does: one call of grpc.health.v1, no retries."""

from __future__ import annotations

from grpc_health.v1 import health_pb2, health_pb2_grpc

from topwork.client import calls
from topwork.client.blocking_calls import ask
from topwork.client.credentials import NOTHING, Credentials

SERVING = "SERVING"


def status(address: str, service: str, seconds: float, credentials: Credentials = NOTHING) -> str:
    """Return the status of a service of the server at ``address``; ``""`` is the whole process.

    Such as SERVING. Raises CallFailed if it does not answer within ``seconds``, or knows no such
    service.
    """
    # A probe is about this very server, never about a proxy.
    with credentials.open_channel(address, calls.DIRECT) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        answer = ask(check, health_pb2.HealthCheckRequest(service=service), seconds)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
