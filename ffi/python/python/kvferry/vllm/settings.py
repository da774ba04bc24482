"""What an operator may set in `kv_connector_extra_config` (the connector) or in a tier's entry of `secondary_tiers`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

# Longest deadline that an agent takes.
MAX_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Settings:
    """Checked settings. Unknown keys and bad values are refused with one line, before anything is registered."""

    socket: str | None = None
    """The agent's unix socket; None: KVFERRY_SOCKET."""
    tenant: str = "vllm"
    """First part of the namespace: engines of two tenants share nothing."""
    model_id: str | None = None
    """What the weights are called, where the model's path does not say it (two hosts, two paths)."""
    namespace: str | None = None
    """The namespace that this engine must arrive at; it does not start where its own configuration leads to another."""
    memory: str = "auto"
    """`in_place`: the engine's KV cache is registered and read by peers where it lies; `pool`: blocks are copied through
    the agent's pool; `auto`: in place where that can be done."""
    pool_bytes: int = 0
    """Size of a pool that this engine creates; 0: as the agent is configured."""
    checksum: str = "off"
    """`off`, `sampled` or `always`: which blocks readers check against the checksum they were sealed with."""
    load: str = "async"
    """`async`: a request waits outside the batch while its blocks come; `sync`: within the step, layer by layer."""
    publish: str = "all"
    """`all` full blocks, or those of the `prompt` only."""
    lookup_timeout_s: float = 0.2
    """A look-up that has no answer by then is a miss for its request."""
    handoff_timeout_s: float = 5.0
    """How long a decoding engine waits for the blocks that a prefilling one announced."""
    load_timeout_s: float = 10.0
    """By then every block of a load has come or has failed, and is computed."""
    pin_s: float = 30.0
    """How long a prefilling engine's pool keeps handed-off blocks at least."""
    min_blocks: int = 1
    """Shorter external hits are not worth a load."""
    reconnect_s: float = 1.0
    """Pause between attempts to reach an agent that went away."""

    @classmethod
    def parse(cls, given: Mapping[str, Any], ignored: frozenset[str] = frozenset()) -> Settings:
        """From the operator's mapping. ValueError names the key."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(given) - known - ignored)
        if unknown:
            raise ValueError(f"kvferry: unknown setting {unknown[0]!r}; known are {', '.join(sorted(known))}")
        settings = cls(**{key: value for key, value in given.items() if key in known})
        settings._check()
        return settings

    def _check(self) -> None:
        choices = {
            "memory": ("auto", "in_place", "pool"),
            "checksum": ("off", "sampled", "always"),
            "load": ("async", "sync"),
            "publish": ("all", "prompt"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"kvferry: {name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        for name in ("lookup_timeout_s", "handoff_timeout_s", "load_timeout_s", "pin_s", "reconnect_s"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= MAX_TIMEOUT_S:
                raise ValueError(f"kvferry: {name} must be a number of seconds above 0 and up to {MAX_TIMEOUT_S:g}")
        for name, least in (("pool_bytes", 0), ("min_blocks", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"kvferry: {name} must be a whole number, at least {least}")
        for name in ("tenant",):
            value = getattr(self, name)
            if not isinstance(value, str) or not value or "/" in value or len(value) > 64:
                raise ValueError(f"kvferry: {name} must be 1 to 64 characters without '/'")
        for name in ("socket", "model_id", "namespace"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ValueError(f"kvferry: {name} must be a text")
