"""Limits of sizes and counts, the same in training and serving."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLimits:
    """Limits of images, labels and models. An error names the value and the limit."""

    max_image_bytes: int = 16 * 2**20
    """Length of one encoded image."""
    max_image_pixels: int = 50_000_000
    """Width times height of one image, checked before it is decoded."""
    max_display_name_length: int = 200
    """Characters of an uploaded image's name; longer ones are cut.

    An operation may have to name each image of an upload, and another one of the model, in one
    message: 20,000 times two such names and a label, four bytes a character, are 40 MB.
    """
    max_label_length: int = 100
    """Length of a label in characters."""
    min_images_per_label: int = 5
    """Usable images that a label needs."""
    max_labels: int = 1_000
    """Labels of one model."""
    max_images_per_model: int = 200_000
    """Images that changes may bring a model to: all exemplars are in memory when it is solved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits(InputLimits):
    """Limits of a server: those of its inputs, and of its calls, memory and disk."""

    max_images_per_request: int = 256
    """Images in one Classify request."""
    max_message_bytes: int = 64 * 2**20
    """Length of one gRPC message, in both directions."""
    max_images_per_upload: int = 20_000
    """Images in one AddClass call."""
    max_upload_bytes: int = 16 * 2**30
    """Length of all images of one AddClass call together."""
    max_model_bytes: int = 100 * 10**9
    """What a model's revisions, exemplars and uploaded images may take on the disk."""
    max_pending_operations: int = 100
    """Unfinished operations of one model."""
    max_uploads: int = 16
    """AddClass and AddExamples calls at a time; each has a message in memory."""
    max_streams: int = 64
    """StreamClassify calls at a time; each has messages in memory."""
    max_watches: int = 100
    """Calls at a time that wait for an operation; one look for all of them, 20 times a second."""
    max_queue_bytes: int = 2**30
    """Length of all encoded images in the server at a time."""
    min_free_bytes: int = 512 * 2**20
    """What an upload must leave free on the repository's disk: publishing needs room, too."""
    min_free_inodes: int = 1_000
    """The same in files: a change writes about ten, of which each takes an inode."""


DEFAULT_LIMITS = ServerLimits()
