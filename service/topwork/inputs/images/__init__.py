"""Image file formats: signatures, bounds on the work of decoding, and an opener for each."""
