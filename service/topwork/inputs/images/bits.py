"""Bit fields of coded video headers, most significant bit first."""

from __future__ import annotations


class Bits:
    """Reader of bit fields from the start of ``content``. Raises ValueError after its end."""

    def __init__(self, content: bytes) -> None:
        self._value = int.from_bytes(content)
        self._left = 8 * len(content)

    def read(self, count: int) -> int:
        """Return an unsigned integer of ``count`` bits."""
        self._left -= count
        if self._left < 0:
            raise ValueError("a header is cut off")
        return self._value >> self._left & (1 << count) - 1

    def exponential(self) -> int:
        """Return an integer in Exp-Golomb code (ITU-T H.265, 9.2)."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)
