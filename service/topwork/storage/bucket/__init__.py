"""Storage in an object store, such as S3, with a cache on the local disk."""
