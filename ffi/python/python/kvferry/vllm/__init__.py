"""kvferry in vLLM: `KvferryConnector` (a KV connector) and `KvferryTier` (a secondary tier of tiered offloading, with its
cache policy `KvferryPolicy`). docs/vllm.md says how to name them in vLLM's configuration.

Each is imported when it is asked for: a tier runs where the connector's half of vLLM is not loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .connector import KvferryConnector as KvferryConnector
    from .policy import KvferryPolicy as KvferryPolicy
    from .tier import KvferryTier as KvferryTier

_PLACES = {"KvferryConnector": "connector", "KvferryTier": "tier", "KvferryPolicy": "policy"}
__all__ = ["KvferryConnector", "KvferryPolicy", "KvferryTier"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
