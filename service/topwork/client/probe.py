"""Health probe of a server: one call of grpc.health.v1 without retries."""

from __future__ import annotations

from grpc_health.v1 import health_pb2, health_pb2_grpc

from topwork.client import calls
from topwork.client.blocking_calls import call_unary
from topwork.client.credentials import ANONYMOUS, Credentials

SERVING = "SERVING"


def status(address: str, service: str, seconds: float, credentials: Credentials = ANONYMOUS) -> str:
    """Return the status, such as SERVING, of a service at ``address``; ``""`` is the whole server.

    Raises CallFailed if the server does not answer within ``seconds``, or has no such service.
    """
    # A proxy would answer for the server.
    with credentials.open_channel(address, calls.DIRECT) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        response = call_unary(check, health_pb2.HealthCheckRequest(service=service), seconds)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))
