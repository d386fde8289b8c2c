"""Bundle: the files and numbers of a revision, shared by trainer and server."""
