"""The contract between trainer and server: what a bundle is, on disk and in numbers."""
