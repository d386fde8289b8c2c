"""Servicers of the gRPC services: each method converts, calls, converts."""
