"""Addresses, and errors as google.rpc.Status; shared by client and server."""
