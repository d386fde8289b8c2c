"""The Python client, blocking and for asyncio; it needs grpc and protobuf alone."""
