"""Access control: access file, principals, tokens, roles and rate limits; no grpc."""
