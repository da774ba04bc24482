"""A tier's namespace: as `identity.py`, of what vLLM tells a tier."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from typing import TYPE_CHECKING, Any

import kvferry

from . import compat
from .identity import DIGEST_CHARS, MODEL_CHARS, IdentityError
from .settings import Settings

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import OffloadingSpec

# Under vLLM's name: its handlers and levels hold for it.
logger = logging.getLogger("vllm.kvferry.tier_identity")

# An offload key: the block hash, then the index of the KV cache group in four bytes.
GROUP_BYTES = 4


def tier_namespace(spec: OffloadingSpec, view: memoryview, settings: Settings) -> kvferry.Namespace:
    """Of the chunks in `view` (chunks x bytes); IdentityError where they cannot be shared, or another name is expected."""
    config = spec.config
    model = _model_config()
    algorithm = _algorithm()
    seed = compat.hash_seed(algorithm)
    if seed is None:
        raise IdentityError(
            f"kvferry: block hashes ({algorithm}) start from a random seed in this vLLM, so no other engine has any of "
            "them; set PYTHONHASHSEED to the same number for all engines"
        )
    name = settings.model_id or config.model.name
    parallel = config.parallel
    row = int(view.shape[1]) if view.shape else 0
    tokens = max(group.tokens_per_block for group in config.groups) * config.cache.blocks_per_chunk
    description: dict[str, Any] = {
        "engine": f"vllm-{compat.minor()}",
        "tier": "cpu",
        "model": name,
        "revision": str(getattr(model, "revision", None) or ""),
        "dtype": str(config.model.dtype),
        "hash": algorithm,
        "seed": seed,
        "hash_tokens": config.cache.tokens_per_hash,
        "blocks_per_chunk": config.cache.blocks_per_chunk,
        "groups": [[group.tokens_per_block, len(group.layer_names)] for group in config.groups],
        "layout": str(getattr(config, "kv_cache_layout", None) or "backend"),
        "canonical": bool(config.canonical_layout),
        "replicated": bool(spec.replicated_layout),
        "tp": parallel.tp_size,
        "pp": parallel.pp_size,
        "pcp": parallel.pcp_size,
        "dcp": parallel.dcp_size,
        "bytes": row,
    }
    digest = hashlib.sha256(json.dumps(description, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    short = re.sub(r"[^A-Za-z0-9._-]", "_", name.rstrip("/").rsplit("/", 1)[-1])[-MODEL_CHARS:] or "model"
    full = f"{settings.tenant}/{short}/{digest[:DIGEST_CHARS]}/tier"
    words = json.dumps(description, sort_keys=True)
    if settings.namespace is not None and settings.namespace != full:
        raise IdentityError(
            f"kvferry: this tier's configuration leads to the namespace {full!r}, but {settings.namespace!r} is expected; they "
            f"would share nothing. This tier is {words}"
        )
    logger.info("kvferry: namespace %s is %s", full, words)
    layout = kvferry.Layout(str(config.model.dtype)[:32], tokens, 1, row)
    hash_len = compat.hash_bytes(algorithm) + GROUP_BYTES
    return kvferry.Namespace(full, layout, hash_len, kvferry.Checksum[settings.checksum.upper()])


def _current() -> Any:
    """vLLM's configuration, where it is set while a tier is made."""
    from vllm.config import vllm as configuration

    getter = getattr(configuration, "get_current_vllm_config_or_none", None)
    return getter() if getter is not None else None


def _model_config() -> Any:
    return getattr(_current(), "model_config", None)


def _algorithm() -> str:
    cache = getattr(_current(), "cache_config", None)
    return str(getattr(cache, "prefix_caching_hash_algo", None) or "sha256")
