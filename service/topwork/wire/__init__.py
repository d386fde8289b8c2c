"""What client and server share of the wire: addresses, and errors as google.rpc.Status."""
