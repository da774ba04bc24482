"""CUDA tensors as an agent can open them: the driver is asked through libcuda, which the engine has loaded anyway."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

from .errors import GpuHandleError, GpuUnavailableError, InvalidArgumentError

_DL_CUDA = 2  # DLPack's device type


class IpcMemory(NamedTuple):
    """Memory on a GPU as another process can open it."""

    device_uuid: str
    handle: bytes
    offset: int
    nbytes: int


class _Handle(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_ubyte * 64)]


class _Uuid(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_ubyte * 16)]


def _library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise GpuUnavailableError(f"libcuda.so.1 cannot be loaded: {error}") from error


def _check(code: int, what: str) -> None:
    if code:
        raise GpuHandleError(
            f"{what} says {code}: the memory must come from cudaMalloc or cuMemAlloc (not cudaMallocAsync, managed "
            "memory, or PyTorch's expandable segments)"
        )


def _extent(shape: Any, strides: Any, size: int) -> int:
    """Bytes from a tensor's first element to its last; strides in bytes."""
    if 0 in tuple(shape):
        raise InvalidArgumentError("a tensor without elements")
    if any(stride < 0 for stride in strides):
        raise InvalidArgumentError("a tensor whose strides go backwards")
    return sum((dimension - 1) * stride for dimension, stride in zip(shape, strides)) + size


def _dense(shape: Any, size: int) -> list[int]:
    strides = [size] * len(shape)
    for at in range(len(shape) - 2, -1, -1):
        strides[at] = strides[at + 1] * shape[at + 1]
    return strides


def _place_of(tensor: Any) -> tuple[int, int, int]:
    """A device tensor's ordinal, where it begins, and bytes from its first element to its last."""
    kind, ordinal = tensor.__dlpack_device__() if hasattr(tensor, "__dlpack_device__") else (None, 0)
    if kind != _DL_CUDA:
        raise InvalidArgumentError(
            f"{type(tensor).__name__} is no CUDA tensor (by __dlpack_device__): register_buffer takes those of the processor"
        )
    if hasattr(tensor, "data_ptr"):  # torch, whose __cuda_array_interface__ does not know every dtype
        size = tensor.element_size()
        strides = [stride * size for stride in tensor.stride()]
        return int(ordinal), tensor.data_ptr(), _extent(tensor.shape, strides, size)
    interface = tensor.__cuda_array_interface__
    size, shape = int(interface["typestr"][2:]), interface["shape"]
    strides = interface.get("strides") or _dense(shape, size)
    return int(ordinal), int(interface["data"][0]), _extent(shape, strides, size)


def ipc_of(tensor: Any) -> IpcMemory:
    """A tensor's memory, to be handed to an agent."""
    ordinal, address, nbytes = _place_of(tensor)
    cuda = _library()
    if code := cuda.cuInit(0):
        raise GpuUnavailableError(f"cuInit says {code}")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _check(cuda.cuDeviceGet(ctypes.byref(device), ordinal), f"cuDeviceGet({ordinal})")
    _check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
    try:
        _check(cuda.cuCtxPushCurrent_v2(context), "cuCtxPushCurrent")
        try:
            base, size, pointer = ctypes.c_uint64(), ctypes.c_size_t(), ctypes.c_uint64(address)
            _check(
                cuda.cuMemGetAddressRange_v2(ctypes.byref(base), ctypes.byref(size), pointer),
                f"cuMemGetAddressRange({address:#x})",
            )
            handle, uuid = _Handle(), _Uuid()
            _check(cuda.cuIpcGetMemHandle(ctypes.byref(handle), base), f"cuIpcGetMemHandle({base.value:#x})")
            _check(cuda.cuDeviceGetUuid_v2(ctypes.byref(uuid), device), "cuDeviceGetUuid")
        finally:
            cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    finally:
        cuda.cuDevicePrimaryCtxRelease_v2(device)
    text = bytes(uuid.bytes).hex()
    parts = (text[:8], text[8:12], text[12:16], text[16:20], text[20:])
    return IpcMemory("GPU-" + "-".join(parts), bytes(handle.reserved), address - base.value, nbytes)
