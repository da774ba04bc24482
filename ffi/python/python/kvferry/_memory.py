"""Memory that an agent can map: finding it under a buffer, and making it."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from . import _native
from .errors import InvalidArgumentError, NotShareableError, SystemRefusedError

# glibc gives allocations of at least this size pages of their own (its largest M_MMAP_THRESHOLD).
_OWN_PAGES = 32 << 20
_PAGE = os.sysconf("SC_PAGESIZE")


class SharedMemory(_native.SharedMemory):
    """Memory of this process that an agent on this host can map (a memfd): for an engine's KV cache. Zeroed. It has the
    buffer protocol: `numpy.frombuffer(memory, dtype)`, `torch.frombuffer(memory, dtype=...)`. It goes with its last
    user. `hugepages` wants reserved ones (vm.nr_hugepages)."""


def span_of(buffer: Any) -> _native.Span:
    """Where an object's memory lies; keeps it there."""
    try:
        # A view has its strides written down also where the object (ctypes) leaves them out.
        return _native.Span.of_buffer(memoryview(buffer))
    except TypeError:
        if not hasattr(buffer, "__dlpack__"):
            raise InvalidArgumentError(
                f"{type(buffer).__name__} has neither the buffer protocol nor __dlpack__"
            ) from None
    detached = buffer.detach() if hasattr(buffer, "detach") else buffer
    return _native.Span.of_capsule(detached.__dlpack__())


class _Mapping(NamedTuple):
    start: int
    end: int
    rights: str
    offset: int
    device: tuple[int, int]
    inode: int
    path: str

    @property
    def shared(self) -> bool:
        return self.rights[3] == "s"


def _mappings(start: int, end: int) -> list[_Mapping]:
    """This process's mappings that have some of [start, end), in order."""
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            span, rights, offset, device, inode, *path = line.rstrip("\n").split(maxsplit=5)
            low, high = (int(text, 16) for text in span.split("-"))
            if high <= start:
                continue
            if low >= end:
                break
            major, minor = (int(text, 16) for text in device.split(":"))
            name = path[0] if path else ""
            found.append(_Mapping(low, high, rights, int(offset, 16), (major, minor), int(inode), name))
    return found


class Backing(NamedTuple):
    """The file under a buffer, by a descriptor of the caller's, and where in it the buffer begins."""

    fd: int
    offset: int


def backing_of(span: _native.Span) -> Backing:
    """Finds the shared memory under a span."""
    start, end = span.address, span.address + span.nbytes
    if span.nbytes == 0:
        raise InvalidArgumentError("a buffer without bytes")
    mappings = _mappings(start, end)
    covered = start
    for it in mappings:
        if it.start > covered:
            break
        covered = it.end
    if covered < end:
        raise InvalidArgumentError(f"the {span.nbytes} bytes at {start:#x} are not mapped in this process")
    first = mappings[0]
    for it in mappings:
        if not it.shared or it.inode == 0:
            raise NotShareableError(
                f"the {span.nbytes} bytes at {start:#x} are private memory of this process ({it.path or 'anonymous'}): "
                "allocate them as kvferry.SharedMemory or in /dev/shm, or call kvferry.share_in_place first"
            )
        same = (it.device, it.inode) == (first.device, first.inode)
        if not same or it.offset - first.offset != it.start - first.start:
            raise NotShareableError(
                f"the {span.nbytes} bytes at {start:#x} are several mappings: register them one by one"
            )
    return Backing(_descriptor(first), first.offset + start - first.start)


def _descriptor(mapping: _Mapping) -> int:
    """A descriptor of a mapping's file, for reading and writing."""
    candidates = []
    if mapping.path.startswith("/") and not mapping.path.endswith(" (deleted)"):
        candidates.append(mapping.path)
    for number in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{number}"
        try:
            found = os.stat(path)
        except OSError:
            continue  # closed meanwhile
        if _is(found, mapping):
            candidates.append(path)
    # For whom the kernel lets (CAP_CHECKPOINT_RESTORE): also what no descriptor is left of.
    candidates.append(f"/proc/self/map_files/{mapping.start:x}-{mapping.end:x}")
    for path in candidates:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        if _is(os.fstat(fd), mapping):
            return fd
        os.close(fd)
    raise NotShareableError(
        f"no descriptor of {mapping.path or 'the memory'} is open in this process, and it cannot be opened again: "
        "keep the descriptor open until it is registered, or use register_fd"
    )


def _is(found: os.stat_result, mapping: _Mapping) -> bool:
    device = (os.major(found.st_dev), os.minor(found.st_dev))
    return (device, found.st_ino) == (mapping.device, mapping.inode)


# Descriptors of memory that was shared in place, by which it is found: (start, end, fd).
_shared: list[tuple[int, int, int]] = []


def _forget_ended() -> None:
    """Gives memory back whose buffer was freed since."""
    for entry in list(_shared):
        start, end, fd = entry
        found = os.fstat(fd)
        if not any(_is(found, it) for it in _mappings(start, end)):
            _shared.remove(entry)
            os.close(fd)


def share_in_place(buffer: Any) -> None:
    """Turns the private anonymous pages under a buffer (a CPU tensor, a numpy array) into shared memory at the same
    addresses, so that `Client.register_buffer` takes it: for engines that allocate their KV cache themselves.

    Nothing may write to the buffer meanwhile, and for that time there must be memory for a second copy. Pages that a device
    has pinned (cudaHostRegister, pin_memory, RDMA) must not be converted: do it before they are. Refused
    (NotShareableError) for less than 32 MiB that is not whole pages, because other objects share its edge pages. Nothing
    to do where it is shared already. A child of fork() shares the memory from then on, instead of having a copy."""
    _forget_ended()
    span = span_of(buffer)
    if span.device[0] != 1:
        raise NotShareableError("memory of a device, or pinned by one, cannot be shared in place")
    start, end = span.address, span.address + span.nbytes
    low, high = start - start % _PAGE, end + -end % _PAGE
    mappings = _mappings(low, high)
    if mappings and all(it.shared for it in mappings):
        return
    if (low, high) != (start, end) and span.nbytes < _OWN_PAGES:
        raise NotShareableError(
            f"the {span.nbytes} bytes at {start:#x} share pages with other objects: allocate at least "
            f"{_OWN_PAGES} bytes at once, whole pages, or kvferry.SharedMemory"
        )
    covered = low
    for it in mappings:
        if it.start > covered or it.inode != 0 or it.rights != "rw-p":
            raise NotShareableError(
                f"the {span.nbytes} bytes at {start:#x} are not private anonymous memory ({it.rights} {it.path})"
            )
        covered = it.end
    if covered < high:
        raise InvalidArgumentError(f"the {span.nbytes} bytes at {start:#x} are not mapped in this process")
    try:
        fd = _native.share_in_place(low, high - low)
    except SystemRefusedError as error:
        raise NotShareableError(str(error)) from error
    _shared.append((low, high, fd))
