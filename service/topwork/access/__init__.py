"""Who may do what, and how often: access file, principals, tokens, roles, rate limits; no grpc."""
