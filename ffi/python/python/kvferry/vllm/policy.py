"""The primary tier's cache policy: vLLM's LRU, which withdraws a chunk before its memory is given to another.

A tier publishes chunks where they lie in vLLM's CPU region, and vLLM tells tiers nothing of evictions; its cache policy is
what decides on them, and may come from outside. So the two go together:

    "eviction_policy": "KvferryPolicy", "cache_policy_module_path": "kvferry.vllm"
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from vllm.v1.kv_offload.cpu.policies.lru import LRUCachePolicy

from . import compat


class Publisher(Protocol):
    """The tier, as its policy sees it."""

    def withdraw(self, chunks: Sequence[int]) -> set[int]:
        """Nobody takes these chunks' bytes for their blocks any more; but for those that it returns: they are in use."""


class KvferryPolicy(LRUCachePolicy):
    """Evicts as LRU does, only chunks that are withdrawn. A chunk that a reader has pinned stays, as recently used."""

    _unclaimed: ClassVar[list[weakref.ref[KvferryPolicy]]] = []

    def __init__(self, cache_capacity: int) -> None:
        super().__init__(cache_capacity)
        self._publisher: Publisher | None = None
        KvferryPolicy._unclaimed.append(weakref.ref(self))

    @classmethod
    def claim(cls, chunks: int, publisher: Publisher) -> bool:
        """Binds a tier to the policy that was made last for a primary tier of that size: vLLM makes the primary tier, and
        then its secondary tiers. False where there is none."""
        while cls._unclaimed:
            policy = cls._unclaimed.pop()()
            if policy is not None and policy.cache_capacity == chunks:
                policy._publisher = publisher
                return True
        return False

    def evict(self, n: int, protected: set[Any]) -> list[tuple[Any, Any]] | None:
        if self._publisher is None:
            return super().evict(n, protected)
        gone: list[tuple[Any, Any]] = []
        kept: set[Any] = set()
        while len(gone) < n:
            found = super().evict(n - len(gone), protected | kept)
            if found is None:
                # Not so many can be had: those taken stay in the cache, though nobody else can read them any more.
                for key, status in gone:
                    self.insert(key, status)
                return None
            busy = self._publisher.withdraw([compat.chunk_id(status) for _, status in found])
            for key, status in found:
                if compat.chunk_id(status) in busy:
                    kept.add(key)
                    self.insert(key, status)
                else:
                    gone.append((key, status))
        return gone

    def remove(self, key: Any) -> None:
        status = self.get(key)
        if self._publisher is not None and status is not None:
            self._publisher.withdraw([compat.chunk_id(status)])
        super().remove(key)

    def clear(self) -> None:
        if self._publisher is not None:
            self._publisher.withdraw(range(self.cache_capacity))
        super().clear()
