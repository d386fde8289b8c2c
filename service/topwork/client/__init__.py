"""The Python client, blocking and for asyncio; it needs only grpc and protobuf."""
