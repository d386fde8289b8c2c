"""Golden files: documents and repositories stored by released versions."""
