"""What calls are given and what they answer."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Union

from .errors import InvalidArgumentError

if TYPE_CHECKING:
    from ._regions import Pin


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
    def block_bytes(self) -> int:
        """Bytes of a block."""
        return self.planes * self.plane_bytes


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
        return Geometry(slots, (Plane(base, block_bytes if stride is None else stride, block_bytes),))


@dataclass(frozen=True)
class PackedHashes:
    """Hashes of one length back to back in one buffer: cheaper than a list for thousands."""

    buffer: bytes
    hash_len: int

    def __post_init__(self) -> None:
        if self.hash_len <= 0 or len(self.buffer) % self.hash_len:
            raise InvalidArgumentError(f"{len(self.buffer)} bytes are not hashes of {self.hash_len} bytes each")

    def __len__(self) -> int:
        return len(self.buffer) // self.hash_len

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.buffer[index * self.hash_len : (index + 1) * self.hash_len]


Hashes = Union[Sequence[bytes], PackedHashes]


class Place(enum.IntEnum):
    """Where a block could be had."""

    UNKNOWN = 0
    MISSING = 1
    LOCAL = 2
    REMOTE = 3


class Kind(enum.IntEnum):
    """What became of one block of a pull. Only PULLED and LOCAL mean that the bytes are the block."""

    PULLED = 1
    """The bytes are the block."""
    LOCAL = 2
    """It was here already; into a region's slot it was copied."""
    MISSING = 3
    """No node holds it: compute it."""
    STALE = 4
    """Every owner had overwritten it: compute it."""
    CORRUPT = 5
    """Its bytes did not have the checksum they were sealed with: compute it."""
    UNREACHABLE = 6
    """No owner could be reached: compute it, or pull again later."""
    TIMED_OUT = 7
    """The deadline came first; whether the block exists is unknown."""
    LOCATE_FAILED = 8
    """The coordinator could not be asked: not a miss."""
    NO_SPACE = 9
    """Every slot is pinned or reserved."""
    CANCELLED = 10
    """Given up, or the agent stops."""
    DENIED = 11
    """Who holds it does not let this agent read it: with no ticket that it can get, or not its user. Compute it. Neither a
    miss nor an outage, and pulling again does not help: get the right, compare clocks and the coordinator's key, look at
    the owner's allow_uids."""
    REFUSED = 64
    """The agent refused the whole pull; its `result()` raises why. Nothing was written."""
    AGENT_LOST = 65
    """The connection to the agent ended meanwhile."""
    UNKNOWN = 66
    """The agent said something that this package does not know: take it for a failure."""


_KINDS = {int(kind): kind for kind in Kind}


class Outcome(NamedTuple):
    """What became of one block. `settled` False: the destination slot may still be written to; leave it alone (`reserve`
    raises SlotBusyError until it is free)."""

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
        return self.kind <= 2


def outcomes(told: list[tuple]) -> list[Outcome]:
    return [Outcome(it[0], _KINDS.get(it[1], Kind.UNKNOWN), *it[2:]) for it in told]


@dataclass(frozen=True)
class PullResult:
    """A pull that has ended: `outcomes[i]` is that of hash i. Times in seconds. `pin`, of a pull into the pool, keeps the
    blocks there; `pin.view(i)` reads block i."""

    outcomes: tuple[Outcome, ...]
    pulled: int
    bytes: int
    locate_s: float
    connect_s: float
    wire_s: float
    total_s: float
    pin: Pin | None

    @property
    def ok(self) -> bool:
        """Every block came."""
        return all(it.ok for it in self.outcomes)

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Those that did not."""
        return tuple(it for it in self.outcomes if not it.ok)


@dataclass(frozen=True)
class PutResult:
    """What a put did. `announced`: every coordinator lists the blocks (only where wait_announced was given)."""

    stored: int
    present: int
    announced: bool


@dataclass(frozen=True)
class Sealed:
    """`duplicates`: slots of a pool that were freed because it held their block already. `announced`: every coordinator
    lists the blocks (only where wait_announced was given)."""

    generations: tuple[int, ...]
    duplicates: tuple[int, ...]
    announced: bool


@dataclass(frozen=True)
class Evicted:
    """What an eviction did."""

    evicted: int
    kept_pinned: int


class PinnedBlock(NamedTuple):
    """Where a pinned block lies."""

    region: int
    slot: int
    generation: int


class ClaimState(enum.IntEnum):
    """Whose a block is to produce."""

    UNKNOWN = 0
    GRANTED = 1
    """The asker's alone, until it publishes the block, gives it back, or the lease ends."""
    STORED = 2
    """It is there: nothing to do."""
    CLAIMED = 3
    """Somebody else's."""


class ClaimPurpose(enum.IntEnum):
    """What a claim is a right to. Claims of different purposes know nothing of each other."""

    PRODUCE = 1
    STORE = 2


@dataclass(frozen=True)
class Claim:
    """Per hash whose it is. All that was granted is one lease, `token` (0: nothing was), for `ttl` seconds. `holders`: per
    hash the node that holds the claim, where the state is CLAIMED."""

    states: tuple[ClaimState, ...]
    token: int
    ttl: float
    holders: tuple[str | None, ...]


@dataclass(frozen=True)
class RegionStats:
    """Slots of a region, now."""

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
    """The agent's session with a coordinator."""

    address: str
    connected: bool
    unacknowledged_deltas: int
    resyncs: int
    last_error: str


@dataclass(frozen=True)
class Stats:
    """Numbers of an agent, counted since it started; reservations, pins and pulls_in_flight are of now."""

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


# --- as the native half wants them ---


def namespace_words(namespace: Namespace) -> tuple:
    layout = namespace.layout
    return (
        namespace.name,
        layout.dtype,
        layout.tokens_per_block,
        layout.planes,
        layout.plane_bytes,
        namespace.hash_len,
        namespace.checksum.value,
    )


def geometry_words(geometry: Geometry, shift: int = 0) -> tuple:
    return geometry.slots, [(plane.base + shift, plane.stride, plane.len) for plane in geometry.planes]


def hashes_words(hashes: Hashes) -> tuple[int, bytes]:
    if isinstance(hashes, PackedHashes):
        return hashes.hash_len, bytes(hashes.buffer)
    if isinstance(hashes, (bytes, bytearray, memoryview, str)):
        raise InvalidArgumentError("hashes are a sequence of bytes, or PackedHashes")
    lengths = set(map(len, hashes))
    if len(lengths) > 1:
        raise InvalidArgumentError(f"hashes of different lengths: {sorted(lengths)} bytes")
    return (lengths.pop() if lengths else 8), b"".join(hashes)


def name_of(namespace: str | Namespace) -> str:
    return namespace if isinstance(namespace, str) else namespace.name
