"""Storage of a repository: on a file system or in an object store, with locks between writers."""
