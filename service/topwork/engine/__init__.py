"""What the server does, with no word about how it is reached: no grpc, no protobuf here."""
