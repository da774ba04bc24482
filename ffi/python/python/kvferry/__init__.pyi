"""kvferry for Python: the local API of the agent beside an engine.

Words: a *namespace* says how blocks look, a *region* is registered memory cut into *slots*, a *block* is what lies
in a sealed slot under its *hash*. Nothing here copies a block's bytes except `Client.put`.

Every call waits for at most its timeout, without the GIL. Times are seconds (float); sizes are bytes. Failures are
exceptions of `kvferry.errors` (all also here), one class for each thing a caller can do next; their text names the
agent or peer, the block or region, and the cause. An outage is never a miss.

Three ways to call, with the same names and arguments:

* `Client.lookup(...)`: waits, gives the answer.
* `Client.background.lookup(...)`: returns a `Call` at once: `done()`, `result(timeout)`, `add_done_callback(fn)`,
  `fileno()` for event loops, `await`. For schedulers that must never block.
* `kvferry.aio.AsyncClient.lookup(...)`: a coroutine.
"""
from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar

from typing_extensions import Self  # of the stub only

from . import aio as aio, errors as errors

T = TypeVar("T")
Buffer = Any  # an object with the buffer protocol, or a CPU tensor with __dlpack__
Hashes = Sequence[bytes] | PackedHashes

__version__: str

# --- words -------------------------------------------------------------------------------------------------------

class Checksum(enum.Enum):
    """Which blocks a reader checks against the checksum they were sealed with."""
    OFF = 1
    SAMPLED = 2
    ALWAYS = 3

@dataclass(frozen=True)
class Layout:
    """How a block lies in memory, the same for every holder of the namespace: `planes` pieces of `plane_bytes`."""
    dtype: str
    tokens_per_block: int
    planes: int
    plane_bytes: int
    @property
    def block_bytes(self) -> int: ...

@dataclass(frozen=True)
class Namespace:
    """Isolation domain of blocks. All who use `name` must agree on the rest, or are refused (NamespaceMismatchError)."""
    name: str
    layout: Layout
    hash_len: int
    checksum: Checksum = Checksum.OFF

@dataclass(frozen=True)
class Plane:
    """Slot i of it occupies [base + i*stride, +len) of the region's memory, in bytes."""
    base: int
    stride: int
    len: int

@dataclass(frozen=True)
class Geometry:
    """Where a region's slots lie: `layout.planes` planes of `layout.plane_bytes` each."""
    slots: int
    planes: tuple[Plane, ...]
    @staticmethod
    def contiguous(slots: int, block_bytes: int, *, base: int = 0, stride: int | None = None) -> Geometry:
        """One plane, slots back to back (or `stride` apart)."""

@dataclass(frozen=True)
class PackedHashes:
    """Hashes of one length back to back in one buffer: cheaper than a list for thousands."""
    buffer: bytes
    hash_len: int
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> bytes: ...

class Place(enum.IntEnum):
    """Where a block could be had."""
    UNKNOWN = 0
    MISSING = 1
    LOCAL = 2
    REMOTE = 3

class Kind(enum.IntEnum):
    """What became of one block of a pull. Only PULLED and LOCAL mean that the bytes are the block."""
    PULLED = 1
    LOCAL = 2
    MISSING = 3
    STALE = 4
    CORRUPT = 5
    UNREACHABLE = 6
    TIMED_OUT = 7
    LOCATE_FAILED = 8
    NO_SPACE = 9
    CANCELLED = 10
    REFUSED = 64
    AGENT_LOST = 65
    UNKNOWN = 66

@dataclass(frozen=True)
class Outcome:
    """What became of one block. `settled` False: the destination slot may still be written to; leave it alone."""
    index: int
    kind: Kind
    region: int
    slot: int
    generation: int
    source_node: str
    transport: str
    detail: str
    settled: bool
    @property
    def ok(self) -> bool:
        """The bytes are the block (PULLED or LOCAL)."""

@dataclass(frozen=True)
class PullResult:
    """A pull that has ended: `outcomes[i]` is that of hash i. Times in seconds."""
    outcomes: tuple[Outcome, ...]
    pulled: int
    bytes: int
    locate_s: float
    connect_s: float
    wire_s: float
    total_s: float
    pin: Pin | None
    """Of a pull into the pool: keeps the blocks there; `pin.view(i)` reads block i."""
    @property
    def ok(self) -> bool:
        """Every block came."""
    @property
    def failed(self) -> tuple[Outcome, ...]: ...

@dataclass(frozen=True)
class PutResult:
    stored: int
    present: int
    announced: bool
    """Every coordinator lists the blocks (only where wait_announced was given)."""

@dataclass(frozen=True)
class Sealed:
    generations: tuple[int, ...]
    duplicates: tuple[int, ...]
    """Slots of a pool that were freed because it held their block already."""
    announced: bool

@dataclass(frozen=True)
class Evicted:
    evicted: int
    kept_pinned: int

@dataclass(frozen=True)
class PinnedBlock:
    region: int
    slot: int
    generation: int

class ClaimState(enum.IntEnum):
    GRANTED = 1
    STORED = 2
    CLAIMED = 3

class ClaimPurpose(enum.IntEnum):
    PRODUCE = 1
    STORE = 2

@dataclass(frozen=True)
class Claim:
    """Per hash: whose it is to produce (or store). All that was granted is one lease, `token` (0: nothing was)."""
    states: tuple[ClaimState, ...]
    token: int
    ttl: float
    holders: tuple[str | None, ...]
    """Per hash: the node that holds the claim, where the state is CLAIMED."""

@dataclass(frozen=True)
class RegionStats:
    region: int
    namespace: str
    pool: bool
    slots: int
    free: int
    reserved: int
    sealed: int
    pinned: int
    quarantined: int
    evictions: int

@dataclass(frozen=True)
class CoordinatorLink:
    address: str
    connected: bool
    unacknowledged_deltas: int
    resyncs: int
    last_error: str

@dataclass(frozen=True)
class Stats:
    node: str
    incarnation: int
    regions: tuple[RegionStats, ...]
    coordinators: tuple[CoordinatorLink, ...]
    reservations: int
    pins: int
    pulls_in_flight: int
    blocks_pulled: int
    bytes_pulled: int
    blocks_stale: int
    blocks_failed: int
    bytes_served: int
    peers_suspect: int

# --- things under way --------------------------------------------------------------------------------------------

class Call(Awaitable[T], Generic[T]):
    """A call under way. Any thread may use it; it ends by its deadline whatever happens."""
    def done(self) -> bool:
        """Never waits."""
    def wait(self, timeout: float | None = None) -> bool:
        """Waits without the GIL until it has ended, at most `timeout` seconds; True where it has."""
    def result(self, timeout: float | None = None) -> T:
        """Its answer, or its failure raised. NotDoneError where it has not ended within `timeout`: it goes on."""
    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Its failure, None where it succeeded; otherwise as `result`."""
    def cancel(self) -> None:
        """Gives it up: it ends soon with CancelledError. What the agent had begun may still happen."""
    def add_done_callback(self, function: Callable[[Call[T]], object]) -> None:
        """Called once with this call, on a thread of the library, or at once where it has ended already. It must
        not block; what it raises is written to sys.unraisablehook."""
    def fileno(self) -> int:
        """An eventfd that can be read once it has ended. The call's own: watch it, neither read nor close it."""
    def __await__(self) -> Generator[Any, None, T]: ...

class Pull(Call[PullResult]):
    """A pull under way. Every hash has exactly one outcome by the pull's timeout (2 s later where the agent itself has
    stopped). `result` raises only where the pull as a whole failed (refused, agent lost, cancelled); failures of
    single blocks are outcomes. Its `fileno` can be read exactly while `poll` has something new to say. The blocks' bytes
    are there as soon as their outcome is."""
    def poll(self) -> list[Outcome]:
        """Outcomes that `poll` has not given before, in the order in which they came. Never waits."""
    def outcomes(self) -> list[Outcome]:
        """All that are there, in the order in which they came; of all blocks where `done()`, also after a failure."""
    def __aiter__(self) -> AsyncIterator[Outcome]:
        """Outcomes as they come."""

# --- memory ------------------------------------------------------------------------------------------------------

class SharedMemory:
    """Memory of this process that an agent on this host can map (a memfd): for an engine's KV cache. Zeroed. It has
    the buffer protocol and DLPack: `numpy.frombuffer(memory, dtype)`, `torch.frombuffer(memory, dtype=...)`. It goes
    with its last user."""
    def __init__(self, nbytes: int, *, hugepages: bool = False) -> None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def fd(self) -> int:
        """Its descriptor; stays the object's."""
    def __buffer__(self, flags: int, /) -> memoryview: ...

def share_in_place(buffer: Buffer) -> None:
    """Turns the private anonymous pages under a buffer (a CPU tensor, a numpy array) into shared memory at the same
    addresses, so that `Client.register_buffer` takes it. Nothing may write to the buffer meanwhile. Pages that are pinned by a
    device (cudaHostRegister, RDMA) must not be converted: do it before they are. Refused (NotShareableError) for less than
    32 MiB unless it is page-aligned, because other objects share its edge pages. Nothing to do where it is shared already."""

class Region:
    """Registered memory. A region of an engine's memory ends with the client that registered it unless kept; a pool
    stays."""
    id: int
    namespace: str
    slots: int
    pool: bool
    planes: tuple[Plane, ...]
    fingerprint: str
    incarnation: int
    device_uuid: str
    @property
    def client(self) -> Client: ...
    def reserve(self, slots: Sequence[int] | int) -> list[int]:
        """As `Client.reserve`."""
    def seal(self, slots: Sequence[int], hashes: Hashes, *, chained: bool = False, parent: bytes | None = None,
             wait_announced: float = 0.0) -> Sealed: ...
    def abort(self, slots: Sequence[int]) -> None: ...
    def unregister(self) -> int: ...
    def write(self, slots: Sequence[int] | int) -> Reservation:
        """Reserves, and maps the memory writable: for pools. `with pool.write(2) as r: r.view(0)[:] = ...; r.seal(hashes)`"""

class Reservation:
    """Reserved slots of a pool as writable memory. Given back unsealed by `abort`, or at the end of `with`."""
    slots: tuple[int, ...]
    def view(self, index: int) -> memoryview:
        """The bytes of the index-th slot, writable, until `seal` or `abort`."""
    def seal(self, hashes: Hashes, *, chained: bool = False, parent: bytes | None = None,
             wait_announced: float = 0.0) -> Sealed: ...
    def abort(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None: ...

class Pin:
    """A promise that these slots are not reused: until `release` or its time is over."""
    token: int
    blocks: tuple[PinnedBlock | None, ...]
    """Per hash; None: the block is not here."""
    ttl: float
    def view(self, index: int) -> memoryview:
        """Block `index`'s bytes in the agent's pool, read-only, without a copy (numpy.frombuffer, torch.frombuffer take it).
        BlockMissingError where it is not here, PinUnknownError after the pin's end. Blocks in GPU memory, or of several
        planes, have no view (InvalidArgumentError)."""
    def valid(self) -> bool:
        """Whether every pinned slot still has its generation: what was read from views before this said True is right."""
    def release(self) -> None:
        """Ends it, and its views: reading them raises ValueError from then on. BufferError, and nothing is released,
        while something else (a numpy array) still uses one. Also at the end of `with`. Once is enough; twice is nothing."""
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None: ...

# --- the client --------------------------------------------------------------------------------------------------

def connect(socket: str | None = None, *, descriptor_socket: str | None = None, connect_timeout: float = 5.0,
            call_timeout: float = 5.0) -> Client:
    """Connects to the agent at a unix socket (KVFERRY_SOCKET where None), trying for `connect_timeout`: an engine may start
    before its agent. AgentUnreachableError. `call_timeout` bounds calls that name no other timeout."""

class Client:
    """One connection to one agent; any number of threads may use it. Reservations, pins and regions that are not kept
    end with it. It is never connected anew behind your back: after AgentLostError connect again, register again. It does
    not survive os.fork()."""
    node: str
    incarnation: int
    socket: str
    @property
    def closed(self) -> bool: ...
    @property
    def background(self) -> Background:
        """The same calls, returning a `Call` at once."""
    def close(self) -> None:
        """Ends the connection and what is under way on it. Twice is nothing."""
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None: ...

    # registering: within 120 s, memory is mapped or cleared
    def register_pool(self, namespace: Namespace, nbytes: int = 0, *, hugepages: bool = False, exist_ok: bool = True) -> Region:
        """The namespace's pool: the agent's own memory, which it fills and evicts itself. 0: as the agent is configured.
        exist_ok: the one that is there, whatever its size; else PoolExistsError."""
    def register_path(self, namespace: Namespace, path: str, geometry: Geometry, *, keep: bool = False) -> Region:
        """A file that the engine mapped shared, by absolute path (/dev/shm/...)."""
    def register_fd(self, namespace: Namespace, fd: int, geometry: Geometry, *, keep: bool = False) -> Region:
        """A memfd or unlinked file that the engine mapped shared. The descriptor stays the caller's."""
    def register_buffer(self, namespace: Namespace, buffer: Buffer, geometry: Geometry, *, keep: bool = False) -> Region:
        """An engine's own buffer: SharedMemory, mmap, numpy array, torch CPU tensor (also multiprocessing.shared_memory, torch
        share_memory_(), after share_in_place) over shared memory. The geometry counts from the buffer's first byte. Found by
        the address in this process's mappings; NotShareableError where that is private memory. The caller keeps the buffer
        until the region is unregistered."""
    def register_cuda(self, namespace: Namespace, tensor: Any, geometry: Geometry) -> Region:
        """A CUDA tensor (torch, or __cuda_array_interface__ / DLPack), by CUDA IPC. The geometry counts from the tensor's first
        byte. Keep it allocated until unregistered. Reserve before the kernel that overwrites is launched, seal after its
        stream was synchronised. GpuUnavailableError, GpuHandleError."""
    def register_cuda_ipc(self, namespace: Namespace, *, device_uuid: str, handle: bytes, offset: int, nbytes: int,
                          geometry: Geometry) -> Region: ...
    def region(self, id: int) -> Region:
        """One that is there: for what an outcome names. RegionUnknownError."""
    def unregister(self, region: int | Region) -> int:
        """Ends a region; the number of blocks that were in it. Afterwards nothing writes to its memory. MemoryInUseError or
        DeadlineError: something may still do; call again. Within 12 s."""

    # publishing
    def reserve(self, region: int | Region, slots: Sequence[int] | int) -> list[int]:
        """Takes slots for writing: these of an engine's region (blocks in them are gone when this returns), or a number of a
        pool's. All or none: SlotBusyError, PoolFullError."""
    def seal(self, region: int | Region, slots: Sequence[int], hashes: Hashes, *, chained: bool = False,
             parent: bytes | None = None, wait_announced: float = 0.0) -> Sealed:
        """Declares reserved slots complete: slot i holds the block with hash i; peers can read them when this returns.
        chained: each hash's parent is the one before it, the first's is `parent`. wait_announced: seconds (at most 60) to
        wait until every coordinator lists them."""
    def abort(self, region: int | Region, slots: Sequence[int]) -> None:
        """Gives reserved slots back unsealed."""
    def put(self, namespace: str | Namespace, hashes: Hashes, data: Buffer | Sequence[Buffer], *, chained: bool = False,
            parent: bytes | None = None, timeout: float = 30.0, wait_announced: float = 0.0) -> PutResult:
        """Copies blocks into the namespace's pool by value: `data` is one buffer of them back to back, or one each."""

    # finding and bringing
    def lookup(self, namespace: str | Namespace, hashes: Hashes, *, prefix: bool = False, timeout: float = 2.0) -> list[Place]:
        """Where each block could be had; with prefix only the longest run from the first on (a shorter list)."""
    def pull(self, namespace: str | Namespace, hashes: Hashes, *, region: int | Region | None = None,
             slots: Sequence[int] | None = None, timeout: float = 10.0, pin_ttl: float = 30.0, replica: bool = True,
             chained: bool = False, parent: bytes | None = None) -> Pull:
        """Brings blocks here; returns at once. Into slots[i] of the engine's `region` (reserved by the call, sealed and
        published when a block has landed), or into the agent's pool, pinned. replica=False: what was pulled is not published.
        Also where the agent refuses the pull every hash gets an outcome."""

    # keeping and dropping
    def pin(self, namespace: str | Namespace, hashes: Hashes, *, ttl: float = 30.0) -> Pin: ...
    def release(self, pin: int | Pin) -> None:
        """PinUnknownError where it has expired."""
    def evict(self, namespace: str | Namespace, hashes: Hashes | None = None) -> Evicted:
        """Drops blocks of this agent (None: all of the namespace); pinned ones stay."""

    # claims: the exclusive, expiring right to produce a block; saves work, nothing rests on it
    def claim(self, namespace: str | Namespace, hashes: Hashes, *, ttl: float = 30.0, keep: bool = False,
              purpose: ClaimPurpose = ClaimPurpose.PRODUCE) -> Claim: ...
    def renew_claims(self, token: int, *, ttl: float = 30.0) -> int:
        """How many claims the lease still holds; 0: it has ended."""
    def release_claims(self, token: int, hashes: Hashes | None = None) -> int: ...

    def stats(self) -> Stats: ...

class Background:
    """`Client`'s calls that ask the agent, each returning a `Call` of its answer at once: register_*, region, unregister,
    reserve, seal, abort, put, lookup, pin, release, evict, claim, renew_claims, release_claims, stats. (`pull` never waits
    anyway.) Arguments as there."""
    def lookup(self, namespace: str | Namespace, hashes: Hashes, *, prefix: bool = False, timeout: float = 2.0) -> Call[list[Place]]: ...
    def reserve(self, region: int | Region, slots: Sequence[int] | int) -> Call[list[int]]: ...
    def seal(self, region: int | Region, slots: Sequence[int], hashes: Hashes, *, chained: bool = False,
             parent: bytes | None = None, wait_announced: float = 0.0) -> Call[Sealed]: ...
    def abort(self, region: int | Region, slots: Sequence[int]) -> Call[None]: ...
    def pin(self, namespace: str | Namespace, hashes: Hashes, *, ttl: float = 30.0) -> Call[Pin]: ...
    def release(self, pin: int | Pin) -> Call[None]: ...
    def evict(self, namespace: str | Namespace, hashes: Hashes | None = None) -> Call[Evicted]: ...
    def stats(self) -> Call[Stats]: ...
    # ... and the others

# --- processes ---------------------------------------------------------------------------------------------------

class Agent:
    """An agent as a child process: the `kvferry` binary that this package carries. It ends with `stop`, at the end of `with`, and
    with this process, however that ends. Keywords are the agent's settings (`pool_bytes="4GiB"`, `transport="tcp"`,
    `labels={...}`); listening ports are chosen by the kernel unless given, and the socket is in a folder of its own."""
    def __init__(self, *, node: str | None = None, coordinators: Sequence[str], start_timeout: float = 10.0, **settings: object) -> None: ...
    pid: int
    node: str
    socket: str
    announced: dict[str, Any]
    def connect(self, **options: float) -> Client: ...
    def stop(self, timeout: float = 5.0) -> int: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None: ...

class Coordinator:
    """As `Agent`, a coordinator; `url` is for agents' `coordinators`."""
    def __init__(self, *, start_timeout: float = 10.0, **settings: object) -> None: ...
    pid: int
    url: str
    announced: dict[str, Any]
    def stop(self, timeout: float = 5.0) -> int: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None: ...

def binary() -> str:
    """The path of the `kvferry` command: KVFERRY_BINARY, or the one that was installed with this package."""

# --- failures: each another next move ----------------------------------------------------------------------------

class KvferryError(Exception):
    """Any failure of this package. `status` is its stable name ("slot_busy")."""
    status: str

class InvalidArgumentError(KvferryError, ValueError): """Correct the program (also hash length, geometry, slot numbers)."""
class NamespaceUnknownError(KvferryError): """Register a region of the namespace first."""
class NamespaceMismatchError(KvferryError): """Do not start: others use the name with another layout."""
class NamespaceInUseError(KvferryError): """Evict its blocks first."""
class RegionUnknownError(KvferryError): """The region has ended: register it again."""
class SlotBusyError(KvferryError): """Use another slot, or this one later."""
class SlotAlreadySealedError(KvferryError): """Reserve before writing."""
class SlotNotReservedError(KvferryError): """Reserve first."""
class PoolFullError(KvferryError): """Release pins or reservations, or try later."""
class PoolExistsError(KvferryError): """Use the pool that is there."""
class BoundReachedError(KvferryError): """Split the call, or wait until others have ended."""
class CoordinatorUnreachableError(KvferryError): """Try later; it is not a miss."""
class FencedError(KvferryError): """Stop: a newer lifetime of the node has taken over."""
class NodeUnknownError(KvferryError): """Correct the name."""
class ShuttingDownError(KvferryError): """Connect again when the agent is back."""
class RegionMemoryError(KvferryError): """The memory cannot be used: the text says why."""
class NotShareableError(RegionMemoryError): """The buffer is private memory: allocate it as SharedMemory, or share_in_place."""
class MemoryInUseError(KvferryError): """Unregister the other region, or call again later."""
class DeadlineError(KvferryError, TimeoutError): """Ask again: whether it was done is unknown."""
class PinUnknownError(KvferryError): """Nothing: the pin is gone."""
class BlockMissingError(KvferryError): """Compute the block."""
class GpuUnavailableError(KvferryError): """Give the agent that GPU, or restart it."""
class GpuHandleError(KvferryError): """Send a new handle, of memory that can be shared."""
class InternalError(KvferryError): """A defect of the library: report it."""
class AgentUnreachableError(KvferryError, ConnectionError): """Start the agent, or correct the path."""
class AgentLostError(KvferryError, ConnectionError): """Close, connect again, register again."""
class NotDoneError(KvferryError, TimeoutError): """Wait on."""
class CancelledError(KvferryError): """Nothing: it was given up."""
class SystemRefusedError(KvferryError, OSError): """The operating system refused: the text says what."""
class NotAllowedError(KvferryError, PermissionError): """Run as a user whom the agent serves."""
class UnknownReasonError(KvferryError): """The agent is newer than this package: see the text."""
