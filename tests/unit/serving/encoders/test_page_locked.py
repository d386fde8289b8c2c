"""NVIDIA's driver finds GPUs, and allocates page-locked memory, which its last view frees."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from topwork.serving.encoders.page_locked import has_gpu, page_locked


class Driver:
    """Fake NVIDIA driver with heap memory; ``refuses`` names a function that fails."""

    def __init__(self, *, refuses: str = "", gpus: int = 1) -> None:
        self.refuses = refuses
        self.gpus = gpus
        self.current: list[int] = []
        self.allocated: dict[int, Any] = {}
        self.functions = {
            "cuInit": lambda _: 0,
            "cuDeviceGetCount": self.count,
            "cuDeviceGet": self.get_device,
            "cuDevicePrimaryCtxRetain": self.get_context,
            "cuCtxPushCurrent_v2": self.push,
            "cuCtxPopCurrent_v2": self.pop,
            "cuMemHostAlloc": self.allocate,
            "cuMemFreeHost": self.free,
        }

    def __getattr__(self, name: str) -> Any:
        """Return a function of the driver by its name in C."""
        return (lambda *_: 2) if name == self.refuses else self.functions[name]

    def count(self, count: Any) -> int:
        """Return the number of devices."""
        count._obj.value = self.gpus
        return 0

    def get_device(self, handle: Any, device: int) -> int:
        """Return the handle of a device."""
        handle._obj.value = 40 + device
        return 0

    def get_context(self, context: Any, handle: ctypes.c_int) -> int:
        """Return the context of a device."""
        context._obj.value = 100 * handle.value
        return 0

    def push(self, context: ctypes.c_void_p) -> int:
        """Make a context current."""
        assert context.value is not None
        self.current.append(context.value)
        return 0

    def pop(self, context: Any) -> int:
        """Restore the previous context."""
        context._obj.value = self.current.pop()
        return 0

    def allocate(self, address: Any, length: ctypes.c_size_t, flags: int) -> int:
        """Allocate memory that is not zeroed."""
        assert (self.current, flags) == ([4000], 1)
        memory = ctypes.create_string_buffer(b"\xff" * length.value, length.value)
        address._obj.value = ctypes.addressof(memory)
        self.allocated[address._obj.value] = memory
        return 0

    def free(self, address: ctypes.c_void_p) -> int:
        """Free memory."""
        assert self.current == [4000]
        assert address.value is not None
        del self.allocated[address.value]
        return 0


def drive(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    """Use ``driver`` as the driver of this machine."""
    monkeypatch.setattr(ctypes, "CDLL", {"libcuda.so.1": driver}.__getitem__)


@pytest.mark.parametrize(
    ("driver", "found"),
    [(Driver(), True), (Driver(gpus=0), False), (Driver(refuses="cuInit"), False)],
    ids=["gpu", "no gpu", "broken"],
)
def test_gpu_is_found_by_the_driver(
    monkeypatch: pytest.MonkeyPatch, driver: Driver, found: bool
) -> None:
    """There is a GPU if the driver works and counts one."""
    drive(monkeypatch, driver)
    assert has_gpu() is found


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without NVIDIA's driver there is no GPU."""

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert not has_gpu()


def test_array_is_in_the_drivers_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The array is zeroed, writable, and at the address of the driver's memory."""
    driver = Driver()
    drive(monkeypatch, driver)
    array = page_locked((2, 3, 4))
    np.testing.assert_array_equal(array, np.zeros((2, 3, 4), dtype=np.uint8), strict=True)
    assert list(driver.allocated) == [array.ctypes.data]
    array[1, 2, 3] = 7
    (memory,) = driver.allocated.values()
    assert memory.raw == bytes(23) + b"\x07"
    assert driver.current == []


def test_memory_is_freed_with_its_last_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays while a view exists, and is freed after that."""
    driver = Driver()
    drive(monkeypatch, driver)
    array = page_locked((4, 4))
    view = array[1:, 2]
    del array
    assert driver.allocated
    assert view.tolist() == [0, 0, 0]
    del view
    assert not driver.allocated
    assert driver.current == []


@pytest.mark.parametrize(
    "function",
    ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuMemHostAlloc"],
)
def test_refusal_raises_oserror(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal of the driver is an OSError with its number, and no context stays current."""
    driver = Driver(refuses=function)
    drive(monkeypatch, driver)
    with pytest.raises(OSError, match="CUDA error 2"):
        page_locked((4, 4))
    assert driver.current == []


@pytest.mark.cuda
def test_real_driver_allocates_memory() -> None:
    """With a GPU, page-locked memory is writable, and can be freed and allocated again."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        pytest.skip(f"there is no NVIDIA driver: {error}")
    for _ in range(3):
        array = page_locked((64, 224, 224, 3))
        array[:] = 5
        assert array.min() == 5
        del array
