"""Prefill here, decode there: what travels in `kv_transfer_params` between the two, through a router."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Keys that vLLM's routers set and pass on.
DECODE_REMOTELY = "do_remote_decode"
PREFILL_REMOTELY = "do_remote_prefill"
KEY = "kvferry"


@dataclass(frozen=True)
class Handoff:
    """So many tokens of the prompt are published under this namespace."""

    namespace: str
    tokens: int

    def params(self) -> dict[str, Any]:
        """For the decoding engine's request."""
        return {
            PREFILL_REMOTELY: True,
            DECODE_REMOTELY: False,
            KEY: {"namespace": self.namespace, "tokens": self.tokens},
        }


def wanted(params: Mapping[str, Any] | None) -> bool:
    """Whether this request is prefilled here for another engine."""
    return params is not None and bool(params.get(DECODE_REMOTELY))


def announced(params: Mapping[str, Any] | None) -> Handoff | None:
    """What another engine has prefilled, as it said; None where it did not, or not in these words (they came through a
    router, from anybody)."""
    if not params or not params.get(PREFILL_REMOTELY):
        return None
    said = params.get(KEY)
    if not isinstance(said, Mapping):
        return None
    namespace, tokens = said.get("namespace"), said.get("tokens")
    if not isinstance(namespace, str) or isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
        return None
    return Handoff(namespace, tokens)
