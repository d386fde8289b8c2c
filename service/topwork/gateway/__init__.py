"""HTTP/JSON gateway: a client of the gRPC API, in a process of its own beside the server."""
