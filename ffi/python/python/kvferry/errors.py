"""Why a call did not succeed: one class for each thing a caller can do next."""

from __future__ import annotations

__all__ = [
    "AgentLostError",
    "AgentUnreachableError",
    "BlockMissingError",
    "BoundReachedError",
    "CancelledError",
    "CoordinatorUnreachableError",
    "DeadlineError",
    "FencedError",
    "GpuHandleError",
    "GpuUnavailableError",
    "InternalError",
    "InvalidArgumentError",
    "KvferryError",
    "MemoryInUseError",
    "NamespaceInUseError",
    "NamespaceMismatchError",
    "NamespaceUnknownError",
    "NodeUnknownError",
    "NotAllowedError",
    "NotDoneError",
    "NotShareableError",
    "PermissionDeniedError",
    "PinUnknownError",
    "PoolExistsError",
    "PoolFullError",
    "ProcessError",
    "RegionMemoryError",
    "RegionUnknownError",
    "ShuttingDownError",
    "SlotAlreadySealedError",
    "SlotBusyError",
    "SlotNotReservedError",
    "SourceExistsError",
    "SourceNotReadyError",
    "SourceUnknownError",
    "SystemRefusedError",
    "UnauthenticatedError",
    "UnknownReasonError",
]


class KvferryError(Exception):
    """Any failure of this package. `status` is its stable name ("slot_busy"); the text names the agent or peer, the block or
    region, and the cause."""

    status: str = "unknown_reason"


class InvalidArgumentError(KvferryError, ValueError):
    """Correct the program (also the length of hashes, geometries, slot numbers)."""

    status = "invalid_argument"


class NamespaceUnknownError(KvferryError):
    """Register a region of the namespace first."""

    status = "namespace_unknown"


class NamespaceMismatchError(KvferryError):
    """Do not start: others use the namespace's name with another layout."""

    status = "namespace_mismatch"


class NamespaceInUseError(KvferryError):
    """Evict its blocks first."""

    status = "namespace_in_use"


class RegionUnknownError(KvferryError):
    """The region has ended: register it again."""

    status = "region_unknown"


class SlotBusyError(KvferryError):
    """The slot is pinned, reserved or still being written to: use another one, or this one later."""

    status = "slot_busy"


class SlotAlreadySealedError(KvferryError):
    """Reserve before writing."""

    status = "slot_already_sealed"


class SlotNotReservedError(KvferryError):
    """Reserve first."""

    status = "slot_not_reserved"


class PoolFullError(KvferryError):
    """Every slot is pinned or reserved: release some, or try later."""

    status = "pool_full"


class PoolExistsError(KvferryError):
    """Use the pool that is there."""

    status = "pool_exists"


class BoundReachedError(KvferryError):
    """Too much at once: split the call, or wait until others have ended."""

    status = "bound_reached"


class CoordinatorUnreachableError(KvferryError):
    """Try later; it is not a miss."""

    status = "coordinator_unreachable"


class FencedError(KvferryError):
    """Stop: a newer lifetime of the node has taken over."""

    status = "fenced"


class NodeUnknownError(KvferryError):
    """Correct the name."""

    status = "node_unknown"


class ShuttingDownError(KvferryError):
    """Connect again when the agent is back."""

    status = "shutting_down"


class RegionMemoryError(KvferryError):
    """The memory cannot be used: the text says why."""

    status = "memory"


class NotShareableError(RegionMemoryError):
    """The buffer is private memory of this process: allocate it as SharedMemory, or share_in_place."""

    status = "not_shareable"


class MemoryInUseError(KvferryError):
    """Unregister the other region, or call again later."""

    status = "memory_in_use"


class DeadlineError(KvferryError, TimeoutError):
    """Ask again: whether it was done is unknown."""

    status = "deadline"


class PinUnknownError(KvferryError):
    """Nothing: the pin is gone."""

    status = "pin_unknown"


class BlockMissingError(KvferryError):
    """Compute the block."""

    status = "block_missing"


class GpuUnavailableError(KvferryError):
    """Give the agent that GPU, or restart it."""

    status = "gpu_unavailable"


class GpuHandleError(KvferryError):
    """Send a new handle, of memory that can be shared."""

    status = "gpu_handle"


class SourceUnknownError(KvferryError):
    """No such source, or its workers have ended."""

    status = "source_unknown"


class SourceNotReadyError(KvferryError):
    """The source has no worker that is ready: try again later."""

    status = "source_not_ready"


class SourceExistsError(KvferryError):
    """Other tensors are published under that name: withdraw them first, or name these otherwise."""

    status = "source_exists"


class InternalError(KvferryError):
    """A defect of this package: report it."""

    status = "internal"


class AgentUnreachableError(KvferryError, ConnectionError):
    """No agent listens there: start it, or correct the path."""

    status = "agent_unreachable"


class AgentLostError(KvferryError, ConnectionError):
    """The connection has ended, with its regions, reservations and pins: close, connect again, register again."""

    status = "agent_lost"


class NotDoneError(KvferryError, TimeoutError):
    """Nothing is wrong: wait on."""

    status = "not_done"


class CancelledError(KvferryError):
    """Nothing: it was given up."""

    status = "cancelled"


class SystemRefusedError(KvferryError, OSError):
    """The operating system refused something: the text says what."""

    status = "system"


class NotAllowedError(KvferryError, PermissionError):
    """Run as a user whom the agent serves."""

    status = "not_allowed"


class PermissionDeniedError(KvferryError, PermissionError):
    """The agent's identity may not do that there: an operator grants it in the coordinator's policy file."""

    status = "permission_denied"


class UnauthenticatedError(KvferryError, PermissionError):
    """The coordinator does not know who asks: give the agent a certificate or a token."""

    status = "unauthenticated"


class UnknownReasonError(KvferryError):
    """The agent is newer than this package: see the text."""

    status = "unknown_reason"


class ProcessError(KvferryError):
    """A coordinator or an agent did not start: the text says what it said."""

    status = "process"


def _classes() -> dict[str, type[KvferryError]]:
    named = {kind.status: kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, KvferryError)}
    # Reasons whose next move is the same.
    for status in ("hash_length", "span_out_of_region", "slot_out_of_region", "wrong_thread"):
        named[status] = InvalidArgumentError
    named["unknown_reason"] = UnknownReasonError
    return named


BY_STATUS = _classes()


def of(status: str, message: str) -> KvferryError:
    """The exception for a status of the native half."""
    error = BY_STATUS.get(status, UnknownReasonError)(message)
    error.status = status
    return error
