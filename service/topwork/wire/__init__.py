"""Wire: addresses, and errors as google.rpc.Status; client and server share it."""
