"""From files to arrays: what is read, and what an encoder gets."""
