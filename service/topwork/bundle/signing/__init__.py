"""Ed25519 signatures of revisions: keys, manifest.sig, and signing of published revisions."""
