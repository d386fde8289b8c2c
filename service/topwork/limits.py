"""Limits of sizes and counts in training and serving."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLimits:
    """Limits of images, labels and models. Errors contain the value and the limit."""

    max_image_bytes: int = 16 * 2**20
    """Length of one encoded image."""
    max_image_pixels: int = 50_000_000
    """Width times height of one image, checked before decoding."""
    max_text_bytes: int = 256 * 2**10
    """Length of one text in UTF-8."""
    max_audio_bytes: int = 16 * 2**20
    """Length of one file of audio, before decoding."""
    max_display_name_length: int = 200
    """Characters of an uploaded image's name; a longer name is truncated.

    A response may contain two names and a label for each image of an upload: at four bytes per
    character and 20,000 images, 40 MB.
    """
    max_label_length: int = 100
    """Length of a label in characters."""
    min_images_per_label: int = 5
    """Usable images per label that a solve needs."""
    max_labels: int = 1_000
    """Labels of one model."""
    max_images_per_model: int = 1_000_000
    """Images of a model after a change: larger ones were not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits(InputLimits):
    """Limits of a server's inputs, calls, memory and disk."""

    max_images_per_request: int = 256
    """Images in one Classify request."""
    max_message_bytes: int = 64 * 2**20
    """Length of one gRPC message, in both directions."""
    max_images_per_upload: int = 20_000
    """Images in one AddClass call."""
    max_upload_bytes: int = 16 * 2**30
    """Length of all images of one AddClass call together."""
    max_model_bytes: int = 100 * 10**9
    """Disk quota of a model: revisions, exemplars and uploaded images."""
    max_models: int = 10_000
    """Models of a repository, after CreateModel or CopyModel; a fit may exceed it."""
    max_pending_operations: int = 100
    """Unfinished operations of one model."""
    max_uploads: int = 16
    """AddClass, AddClasses and AddExamples calls at a time; each has a message in memory."""
    max_streams: int = 64
    """StreamClassify calls at a time; each has messages in memory."""
    max_watches: int = 100
    """WatchOperation and WaitOperation calls at a time; one database query serves all of them."""
    max_queue_bytes: int = 2**30
    """Length of all encoded images in the server at a time."""
    min_free_bytes: int = 512 * 2**20
    """Space that an upload leaves free on the repository's disk, for publishing."""
    min_free_inodes: int = 1_000
    """Inodes that an upload leaves free: a change writes about ten files."""


DEFAULT_LIMITS = ServerLimits()
