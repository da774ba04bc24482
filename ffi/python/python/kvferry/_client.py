"""The connection to an agent: calls that wait (`Client`), and the same calls under way (`Background`)."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import _native
from ._call import Call, Pull
from ._memory import backing_of, span_of
from ._regions import Pin, Region
from ._words import (
    Claim,
    ClaimPurpose,
    ClaimState,
    CoordinatorLink,
    Evicted,
    Geometry,
    Hashes,
    Namespace,
    PinnedBlock,
    Place,
    PutResult,
    RegionStats,
    Sealed,
    Stats,
    geometry_words,
    hashes_words,
    name_of,
    namespace_words,
)
from .errors import InvalidArgumentError, PoolExistsError, RegionUnknownError

if TYPE_CHECKING:
    from typing_extensions import Self

_PLACES = {int(place): place for place in Place}
_STATES = {int(state): state for state in ClaimState}


def _id(region: int | Region) -> int:
    return region.id if isinstance(region, Region) else region


def _slots(slots: Any) -> list[int]:
    return slots.tolist() if hasattr(slots, "tolist") else list(slots)


def _put_data(data: Any) -> list[_native.Span]:
    return [span_of(it) for it in data] if isinstance(data, (list, tuple)) else [span_of(data)]


def connect(
    socket: str | os.PathLike[str] | None = None,
    *,
    descriptor_socket: str | None = None,
    connect_timeout: float = 5.0,
    call_timeout: float = 5.0,
) -> Client:
    """Connects to the agent at a unix socket (KVFERRY_SOCKET where None), trying for `connect_timeout` seconds: an engine may
    start before its agent. AgentUnreachableError. `call_timeout` bounds calls that name no other timeout; both are at most
    600. `descriptor_socket` is the socket's path with ".fds" at its end unless given."""
    path = os.environ.get("KVFERRY_SOCKET") if socket is None else os.fspath(socket)
    if not path:
        raise InvalidArgumentError("no socket: name the agent's, or set KVFERRY_SOCKET")
    return Client(_native.connect(path, descriptor_socket, connect_timeout, call_timeout), path)


class Background:
    """`Client`'s calls, each returning a `Call` of its answer at once: for schedulers that must never block. Arguments and
    answers as there."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._native = client._native

    def _region(self, told: tuple, owner: Any = None) -> Region:
        region = Region(self._client, told, owner)
        self._client._regions[region.id] = region
        return region

    def register_pool(self, namespace: Namespace, nbytes: int = 0, *, hugepages: bool = False) -> Call[Region]:
        """PoolExistsError where there is one."""
        return Call(self._native.register_pool(namespace_words(namespace), nbytes, hugepages), self._region)

    def register_path(
        self, namespace: Namespace, path: str | os.PathLike[str], geometry: Geometry, *, keep: bool = False
    ) -> Call[Region]:
        words = namespace_words(namespace)
        native = self._native.register_path(words, os.fspath(path), geometry_words(geometry), keep)
        return Call(native, self._region)

    def register_fd(
        self, namespace: Namespace, fd: int, geometry: Geometry, *, keep: bool = False
    ) -> Call[Region]:
        native = self._native.register_fd(namespace_words(namespace), fd, geometry_words(geometry), keep)
        return Call(native, self._region)

    def register_buffer(
        self, namespace: Namespace, buffer: Any, geometry: Geometry, *, keep: bool = False
    ) -> Call[Region]:
        span = span_of(buffer)
        need = max((it.base + max(geometry.slots - 1, 0) * it.stride + it.len for it in geometry.planes), default=0)
        if need > span.nbytes:
            raise InvalidArgumentError(f"the geometry needs {need} bytes, the buffer has {span.nbytes}")
        backing = backing_of(span)
        try:
            words = geometry_words(geometry, backing.offset)
            native = self._native.register_fd(namespace_words(namespace), backing.fd, words, keep)
        finally:
            os.close(backing.fd)  # The call has one of its own.
        return Call(native, lambda told: self._region(told, buffer))

    def register_cuda(self, namespace: Namespace, tensor: Any, geometry: Geometry) -> Call[Region]:
        from ._cuda import ipc_of

        it = ipc_of(tensor)
        native = self._native.register_cuda_ipc(
            namespace_words(namespace), it.device_uuid, it.handle, it.offset, it.nbytes, geometry_words(geometry)
        )
        return Call(native, lambda told: self._region(told, tensor))

    def register_cuda_ipc(
        self,
        namespace: Namespace,
        *,
        device_uuid: str,
        handle: bytes,
        offset: int,
        nbytes: int,
        geometry: Geometry,
    ) -> Call[Region]:
        native = self._native.register_cuda_ipc(
            namespace_words(namespace), device_uuid, handle, offset, nbytes, geometry_words(geometry)
        )
        return Call(native, self._region)

    def unregister(self, region: int | Region) -> Call[int]:
        number = _id(region)
        self._client._forget(number)
        return Call(self._native.unregister(number), int)

    def reserve(self, region: int | Region, slots: Sequence[int] | int) -> Call[list[int]]:
        wanted, count = ([], slots) if isinstance(slots, int) else (_slots(slots), 0)
        return Call(self._native.reserve(_id(region), wanted, count), list)

    def seal(
        self,
        region: int | Region,
        slots: Sequence[int],
        hashes: Hashes,
        *,
        chained: bool = False,
        parent: bytes | None = None,
        wait_announced: float = 0.0,
    ) -> Call[Sealed]:
        native = self._native.seal(
            _id(region), _slots(slots), hashes_words(hashes), chained, parent or b"", wait_announced
        )
        return Call(native, lambda it: Sealed(tuple(it[0]), tuple(it[1]), it[2]))

    def abort(self, region: int | Region, slots: Sequence[int]) -> Call[None]:
        return Call(self._native.abort(_id(region), _slots(slots)), lambda it: it)

    def put(
        self,
        namespace: str | Namespace,
        hashes: Hashes,
        data: Any,
        *,
        chained: bool = False,
        parent: bytes | None = None,
        timeout: float = 30.0,
        wait_announced: float = 0.0,
    ) -> Call[PutResult]:
        native = self._native.put(
            name_of(namespace),
            hashes_words(hashes),
            _put_data(data),
            chained,
            parent or b"",
            timeout,
            wait_announced,
        )
        return Call(native, lambda it: PutResult(*it))

    def lookup(
        self, namespace: str | Namespace, hashes: Hashes, *, prefix: bool = False, timeout: float = 2.0
    ) -> Call[list[Place]]:
        native = self._native.lookup(name_of(namespace), hashes_words(hashes), prefix, timeout)
        return Call(native, lambda it: [_PLACES.get(place, Place.UNKNOWN) for place in it])

    def pin(self, namespace: str | Namespace, hashes: Hashes, *, ttl: float = 30.0) -> Call[Pin]:
        native = self._native.pin(name_of(namespace), hashes_words(hashes), ttl)

        def made(it: tuple) -> Pin:
            blocks = tuple(None if block is None else PinnedBlock(*block) for block in it[1])
            return Pin(self._client, it[0], blocks, ttl)

        return Call(native, made)

    def release(self, pin: int | Pin) -> Call[None]:
        return Call(self._native.release(pin.token if isinstance(pin, Pin) else pin), lambda it: it)

    def evict(self, namespace: str | Namespace, hashes: Hashes | None = None) -> Call[Evicted]:
        words = None if hashes is None else hashes_words(hashes)
        return Call(self._native.evict(name_of(namespace), words), lambda it: Evicted(*it))

    def claim(
        self,
        namespace: str | Namespace,
        hashes: Hashes,
        *,
        ttl: float = 30.0,
        keep: bool = False,
        purpose: ClaimPurpose = ClaimPurpose.PRODUCE,
    ) -> Call[Claim]:
        native = self._native.claim(name_of(namespace), hashes_words(hashes), ttl, keep, int(purpose))

        def made(it: tuple) -> Claim:
            numbers, token, ttl_ms, holders, indices = it
            states = tuple(_STATES.get(number, ClaimState.UNKNOWN) for number in numbers)
            claimed = iter(indices)
            names = tuple(
                holders[next(claimed)][0] if state is ClaimState.CLAIMED else None for state in states
            )
            return Claim(states, token, ttl_ms / 1e3, names)

        return Call(native, made)

    def renew_claims(self, token: int, *, ttl: float = 30.0) -> Call[int]:
        return Call(self._native.renew_claims(token, ttl), int)

    def release_claims(self, token: int, hashes: Hashes | None = None) -> Call[int]:
        words = None if hashes is None else hashes_words(hashes)
        return Call(self._native.release_claims(token, words), int)

    def region(self, id: int) -> Call[Region]:
        def found(it: tuple) -> Region:
            for told, _ in it[2]:
                if told[0] == id:
                    return self._region(told)
            raise RegionUnknownError(f"agent {self._client.node} has no region {id}")

        return Call(self._native.stats(), found)

    def stats(self) -> Call[Stats]:
        return Call(self._native.stats(), _stats)


def _stats(it: tuple) -> Stats:
    node, incarnation, regions, links, numbers = it
    made = tuple(
        RegionStats(told[0], told[1], told[5], told[3], *rest) for told, rest in regions
    )
    return Stats(node, incarnation, made, tuple(CoordinatorLink(*link) for link in links), *numbers)


class Client:
    """One connection to one agent; any number of threads may use it. Reservations, pins and regions that are not kept end
    with it. It is never connected anew behind your back: after AgentLostError connect again, register again. It does not
    survive os.fork(). Made by `connect`."""

    def __init__(self, native: Any, socket: str) -> None:
        self._native = native
        self._regions: dict[int, Region] = {}
        self._mappings: dict[tuple[int, bool], Any] = {}
        self._lock = threading.Lock()
        self.socket = socket
        self.background = Background(self)

    @property
    def node(self) -> str:
        """The agent's name."""
        return self._native.node

    @property
    def incarnation(self) -> int:
        """The agent's lifetime."""
        return self._native.incarnation

    @property
    def closed(self) -> bool:
        """`close` was called. (An agent that is gone is heard of by AgentLostError.)"""
        return self._native.closed

    def close(self) -> None:
        """Ends the connection and what is under way on it. Twice is nothing."""
        self._native.close()
        self._regions.clear()
        self._mappings.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<kvferry client of agent {self.node} at {self.socket}{', closed' if self.closed else ''}>"

    # --- registering: within 120 s, because memory is mapped or cleared ---

    def register_pool(
        self, namespace: Namespace, nbytes: int = 0, *, hugepages: bool = False, exist_ok: bool = True
    ) -> Region:
        """The namespace's pool: the agent's own memory, which it fills and evicts itself. 0: as the agent is configured.
        exist_ok: the one that is there, whatever its size; else PoolExistsError."""
        words = namespace_words(namespace)
        try:
            told = self._native.register_pool(words, nbytes, hugepages).result()
        except PoolExistsError:
            if not exist_ok:
                raise
            regions = self._native.stats().result()[2]
            told = next((told for told, _ in regions if told[1] == namespace.name and told[5]), None)
            if told is None:
                raise
        return self.background._region(told)

    def register_path(
        self, namespace: Namespace, path: str | os.PathLike[str], geometry: Geometry, *, keep: bool = False
    ) -> Region:
        """A file that the engine mapped shared, by absolute path (/dev/shm/...). keep: it stays when this client ends; the
        engine promises that nothing writes to it except into slots it has reserved, also after a restart."""
        return self.background.register_path(namespace, path, geometry, keep=keep).result()

    def register_fd(self, namespace: Namespace, fd: int, geometry: Geometry, *, keep: bool = False) -> Region:
        """A memfd or unlinked file that the engine mapped shared. The descriptor stays the caller's."""
        return self.background.register_fd(namespace, fd, geometry, keep=keep).result()

    def register_buffer(
        self, namespace: Namespace, buffer: Any, geometry: Geometry, *, keep: bool = False
    ) -> Region:
        """An engine's own buffer over shared memory: SharedMemory, mmap, numpy array, torch CPU tensor (also of
        multiprocessing.shared_memory, share_memory_(), or after share_in_place). The geometry counts from the buffer's first
        byte. It is found by its address in this process's mappings; NotShareableError where that is private memory. The
        region keeps the buffer; keep the region until it is unregistered."""
        return self.background.register_buffer(namespace, buffer, geometry, keep=keep).result()

    def register_cuda(self, namespace: Namespace, tensor: Any, geometry: Geometry) -> Region:
        """A CUDA tensor (torch, or anything with __dlpack_device__ and __cuda_array_interface__), by CUDA IPC. The geometry
        counts from the tensor's first byte. Keep it allocated until the region is unregistered. Reserve before the kernel that
        overwrites is launched, seal after its stream was synchronised. GpuUnavailableError, GpuHandleError."""
        return self.background.register_cuda(namespace, tensor, geometry).result()

    def register_cuda_ipc(
        self,
        namespace: Namespace,
        *,
        device_uuid: str,
        handle: bytes,
        offset: int,
        nbytes: int,
        geometry: Geometry,
    ) -> Region:
        """As `register_cuda`, with the handle of cudaIpcGetMemHandle (64 bytes) and where in its allocation the memory
        begins."""
        call = self.background.register_cuda_ipc(
            namespace, device_uuid=device_uuid, handle=handle, offset=offset, nbytes=nbytes, geometry=geometry
        )
        return call.result()

    def region(self, id: int) -> Region:
        """One that is there: for what an outcome names. RegionUnknownError."""
        return self.background.region(id).result()

    def unregister(self, region: int | Region) -> int:
        """Ends a region; gives the number of blocks that were in it. Afterwards nothing writes to its memory.
        MemoryInUseError or DeadlineError: something may still do; call again. Within 12 s."""
        return self.background.unregister(region).result()

    # --- publishing ---

    def reserve(self, region: int | Region, slots: Sequence[int] | int) -> list[int]:
        """Takes slots for writing: these of an engine's region (blocks in them are gone when this returns), or a number of a
        pool's. All or none: SlotBusyError, PoolFullError."""
        return self.background.reserve(region, slots).result()

    def seal(
        self,
        region: int | Region,
        slots: Sequence[int],
        hashes: Hashes,
        *,
        chained: bool = False,
        parent: bytes | None = None,
        wait_announced: float = 0.0,
    ) -> Sealed:
        """Declares reserved slots complete: slot i holds the block with hash i; peers can read them when this returns.
        chained: each hash's parent is the one before it, the first's is `parent`. wait_announced: seconds (at most 60) to
        wait until every coordinator lists them."""
        call = self.background.seal(
            region, slots, hashes, chained=chained, parent=parent, wait_announced=wait_announced
        )
        return call.result()

    def abort(self, region: int | Region, slots: Sequence[int]) -> None:
        """Gives reserved slots back unsealed."""
        self.background.abort(region, slots).result()

    def put(
        self,
        namespace: str | Namespace,
        hashes: Hashes,
        data: Any,
        *,
        chained: bool = False,
        parent: bytes | None = None,
        timeout: float = 30.0,
        wait_announced: float = 0.0,
    ) -> PutResult:
        """Copies blocks into the namespace's pool by value: `data` is one buffer of them back to back, or a list of one
        each."""
        call = self.background.put(
            namespace,
            hashes,
            data,
            chained=chained,
            parent=parent,
            timeout=timeout,
            wait_announced=wait_announced,
        )
        return call.result()

    # --- finding and bringing ---

    def lookup(
        self, namespace: str | Namespace, hashes: Hashes, *, prefix: bool = False, timeout: float = 2.0
    ) -> list[Place]:
        """Where each block could be had; with prefix only the longest run from the first on (a shorter list). An error is
        never a miss."""
        return self.background.lookup(namespace, hashes, prefix=prefix, timeout=timeout).result()

    def pull(
        self,
        namespace: str | Namespace,
        hashes: Hashes,
        *,
        region: int | Region | None = None,
        slots: Sequence[int] | None = None,
        timeout: float = 10.0,
        pin_ttl: float = 30.0,
        replica: bool = True,
        chained: bool = False,
        parent: bytes | None = None,
        stages: Sequence[int] = (),
    ) -> Pull:
        """Brings blocks here; returns at once. Into slots[i] of the engine's `region` (reserved by the call, sealed and
        published when a block has landed), or into the agent's pool, where they are pinned. replica=False: what was pulled is
        not published. Also where the agent refuses the pull every hash gets an outcome.

        `stages`, for a pull into a region: numbers of planes, each at least 1 and together the layout's. The first so many
        planes of every block come first, then the next: see `Pull.wait_stage`. Stages times hashes are at most 131,072."""
        if (region is None) != (slots is None):
            raise InvalidArgumentError("a pull into a region needs both, region and slots")
        to = None if region is None or slots is None else (_id(region), _slots(slots))
        native = self._native.pull(
            name_of(namespace),
            hashes_words(hashes),
            to,
            timeout,
            pin_ttl,
            replica,
            chained,
            parent or b"",
            list(stages),
        )
        return Pull(native, self, pin_ttl)

    # --- keeping and dropping ---

    def pin(self, namespace: str | Namespace, hashes: Hashes, *, ttl: float = 30.0) -> Pin:
        """Promises not to reuse the slots of these blocks of this agent for `ttl` seconds (at most 600)."""
        return self.background.pin(namespace, hashes, ttl=ttl).result()

    def release(self, pin: int | Pin) -> None:
        """Ends a pin by its token; `Pin.release` ends its views too. PinUnknownError where it has expired."""
        self.background.release(pin).result()

    def evict(self, namespace: str | Namespace, hashes: Hashes | None = None) -> Evicted:
        """Drops blocks of this agent (None: all of the namespace); pinned ones stay."""
        return self.background.evict(namespace, hashes).result()

    # --- claims: the exclusive, expiring right to produce a block; saves work, nothing rests on it ---

    def claim(
        self,
        namespace: str | Namespace,
        hashes: Hashes,
        *,
        ttl: float = 30.0,
        keep: bool = False,
        purpose: ClaimPurpose = ClaimPurpose.PRODUCE,
    ) -> Claim:
        """Asks for the right to produce (or store) blocks. Claims end with this client unless kept."""
        return self.background.claim(namespace, hashes, ttl=ttl, keep=keep, purpose=purpose).result()

    def renew_claims(self, token: int, *, ttl: float = 30.0) -> int:
        """A lease lasts for `ttl` seconds from now at least; how many claims it still holds. 0: it has ended."""
        return self.background.renew_claims(token, ttl=ttl).result()

    def release_claims(self, token: int, hashes: Hashes | None = None) -> int:
        """Gives claims back (None: all of the lease); how many there were."""
        return self.background.release_claims(token, hashes).result()

    def stats(self) -> Stats:
        """The agent's numbers."""
        return self.background.stats().result()

    # --- for the package itself ---

    def _region(self, id: int) -> Region:
        return self._regions.get(id) or self.region(id)

    def _mapping(self, id: int, writable: bool) -> Any:
        with self._lock:
            mapping = self._mappings.get((id, writable))
        if mapping is None:
            mapping = self._native.open_region(id, writable).result()
            with self._lock:
                mapping = self._mappings.setdefault((id, writable), mapping)
        return mapping

    def _forget(self, id: int) -> None:
        with self._lock:
            self._mappings.pop((id, False), None)
            self._mappings.pop((id, True), None)
        self._regions.pop(id, None)
