"""Slots of shared memory, through which an encoder process passes pixels to the server."""

from __future__ import annotations

import mmap
import socket
from collections import deque

import numpy as np

from topwork.inputs.image import Pixels
from topwork.inputs.preprocess import LARGEST_SIDE
from topwork.serving.encoders import shared_memory

SLOTS = 10
"""Slots of a process. Raising it lets more of its items wait for a place in a micro-batch.

Must be above MOST_ITEMS, which the process has itself.
"""

SLOT_BYTES = 3 * LARGEST_SIDE**2
"""Size of a slot, for the largest backbone. The pages that are never written take no memory."""


class Slots:
    """Memory for the pixels of SLOTS items. One process writes, the other one reads."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self.free = deque(range(SLOTS))
        """Slots that no item has; of the server, which assigns them."""

    @classmethod
    def shared(cls, link: socket.socket) -> Slots:
        """Return the slots of the process at the other end of ``link``."""
        return cls(shared_memory.share(link, "slots", SLOTS * SLOT_BYTES))

    @classmethod
    def received(cls, link: socket.socket) -> Slots:
        """Return the slots of this process, from the server at the other end of ``link``."""
        return cls(shared_memory.receive(link, SLOTS * SLOT_BYTES))

    def pixels(self, slot: int, crop: int) -> Pixels:
        """Return the pixels (crop, crop, 3) in a slot, without a copy."""
        flat = np.frombuffer(self._memory, np.uint8, 3 * crop**2, slot * SLOT_BYTES)
        return flat.reshape(crop, crop, 3)
