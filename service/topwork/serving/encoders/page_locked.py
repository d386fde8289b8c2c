"""NVIDIA's driver: its GPUs, and page-locked memory, from which a GPU copies at full speed."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

_PORTABLE = 1
"""CU_MEMHOSTALLOC_PORTABLE: page-locked for every context, including ONNX Runtime's."""


def has_gpu() -> bool:
    """Return True if NVIDIA's driver finds a GPU."""
    count = ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        _check(driver.cuInit, 0)
        _check(driver.cuDeviceGetCount, ctypes.byref(count))
    except OSError:
        return False
    return count.value > 0


def page_locked(shape: Sequence[int], *, device: int = 0) -> NDArray[np.uint8]:
    """Return a zeroed uint8 array in page-locked memory, which is freed with its last view.

    ONNX Runtime's Python API cannot allocate such memory and does not need to: the driver
    recognises it by its address. Raises OSError if there is no driver, or if it refuses.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    context, address = _context(driver, device), ctypes.c_void_p()
    length = math.prod(shape)
    with _current(driver, context):
        _check(driver.cuMemHostAlloc, ctypes.byref(address), ctypes.c_size_t(length), _PORTABLE)
    assert address.value is not None, "the driver gave neither memory nor an error"
    memory = (ctypes.c_uint8 * length).from_address(address.value)
    freed = weakref.finalize(memory, _free, driver, context, address)
    freed.atexit = False  # a run may still read the memory at exit
    array = np.ctypeslib.as_array(memory).reshape(shape)
    array[:] = 0
    return array


def _free(driver: ctypes.CDLL, context: ctypes.c_void_p, address: ctypes.c_void_p) -> None:
    with _current(driver, context):
        _check(driver.cuMemFreeHost, address)


def _context(driver: ctypes.CDLL, device: int) -> ctypes.c_void_p:
    """Return the device's primary context, which ONNX Runtime shares."""
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    _check(driver.cuInit, 0)
    _check(driver.cuDeviceGet, ctypes.byref(handle), device)
    _check(driver.cuDevicePrimaryCtxRetain, ctypes.byref(context), handle)
    return context


@contextmanager
def _current(driver: ctypes.CDLL, context: ctypes.c_void_p) -> Iterator[None]:
    _check(driver.cuCtxPushCurrent_v2, context)
    try:
        yield
    finally:
        _check(driver.cuCtxPopCurrent_v2, ctypes.byref(ctypes.c_void_p()))


def _check(function: Callable[..., int], *arguments: object) -> None:
    result = function(*arguments)
    if result:
        raise OSError(f"NVIDIA's driver fails: CUDA error {result}")
