"""Whose blocks may meet: the namespace, derived from all that decides what a block's bytes mean.

Two engines arrive at the same name exactly when their blocks are the same bytes under the same hashes. The name begins
with words for people and ends with a digest of the whole description, which is written to the log at the start.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import compat
from .settings import Settings

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

# A namespace's name has at most 256 bytes; the model's part is the one that may be long.
MODEL_CHARS = 80
DIGEST_CHARS = 24


class IdentityError(ValueError):
    """This engine's blocks cannot be shared safely: the text says why, and what to set."""


@dataclass(frozen=True)
class Group:
    """One KV cache group: layers that share block ids."""

    index: int
    tokens: int
    """Tokens of a block."""
    hashes_per_block: int
    """Of `Request.block_hashes`; the last of them is the block's."""
    window: int | None = None
    """Blocks back from a hit's end that its sliding layers still read; None: they read all."""


@dataclass(frozen=True)
class Identity:
    """All ranks' and groups' namespaces of one engine."""

    description: dict[str, Any]
    """What the digest is of; canonical JSON."""
    model: str
    tenant: str
    hash_len: int
    hash_tokens: int
    """Tokens that one of `Request.block_hashes` covers."""
    groups: tuple[Group, ...]
    tp: int
    pp: int

    @property
    def digest(self) -> str:
        text = json.dumps(self.description, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_CHARS]

    @property
    def base(self) -> str:
        """Common to all ranks and groups: what two engines compare."""
        return f"{self.tenant}/{self.model}/{self.digest}"

    def namespace(self, group: int, tp_rank: int, pp_rank: int) -> str:
        """Of one rank's blocks of one group."""
        return f"{self.base}/tp{tp_rank}of{self.tp}-pp{pp_rank}of{self.pp}-g{group}"

    def all_ranks(self, group: int) -> list[str]:
        """A block is there when all ranks have their part of it."""
        return [self.namespace(group, tp, pp) for pp in range(self.pp) for tp in range(self.tp)]

    def expect(self, name: str) -> None:
        """IdentityError where an operator expected another namespace: said before anything is registered."""
        if name != self.base:
            raise IdentityError(
                f"kvferry: this engine's configuration leads to the namespace {self.base!r}, but {name!r} is expected "
                f"('namespace'); they would share nothing. This engine is {json.dumps(self.description, sort_keys=True)}"
            )


def identify(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, settings: Settings) -> Identity:
    """Of the engine with this configuration; the scheduler and every worker arrive at the same one."""
    model, cache, parallel = vllm_config.model_config, vllm_config.cache_config, vllm_config.parallel_config
    _refuse_unsafe(vllm_config, kv_cache_config)
    algorithm = str(cache.prefix_caching_hash_algo)
    seed = compat.hash_seed(algorithm)
    if seed is None:
        raise IdentityError(
            f"kvferry: block hashes ({algorithm}) start from a random seed in this vLLM, so no other engine has any of "
            "them; set PYTHONHASHSEED to the same number for all engines"
        )
    _, hash_tokens = compat.block_sizes(kv_cache_config, vllm_config)
    groups = tuple(_group(kv_cache_config, index, hash_tokens) for index in compat.shared_group_ids(kv_cache_config))
    name = settings.model_id or str(model.model)
    description = {
        "engine": f"vllm-{compat.minor()}",
        "model": name,
        "revision": str(model.revision or ""),
        "config": _config_digest(model),
        "quantization": str(model.quantization or ""),
        "dtype": str(model.dtype).removeprefix("torch."),
        "cache_dtype": str(cache.cache_dtype),
        "hash": algorithm,
        "seed": seed,
        "hash_tokens": hash_tokens,
        "layout": compat.cache_layout(kv_cache_config),
        "device": _device_type(),
        "groups": [[group.index, group.tokens, _spec_words(kv_cache_config, group.index)] for group in groups],
        "tp": parallel.tensor_parallel_size,
        "pp": parallel.pipeline_parallel_size,
    }
    identity = Identity(
        description=description,
        model=re.sub(r"[^A-Za-z0-9._-]", "_", name.rstrip("/").rsplit("/", 1)[-1])[-MODEL_CHARS:] or "model",
        tenant=settings.tenant,
        hash_len=compat.hash_bytes(algorithm),
        hash_tokens=hash_tokens,
        groups=groups,
        tp=parallel.tensor_parallel_size,
        pp=parallel.pipeline_parallel_size,
    )
    if settings.namespace is not None:
        identity.expect(settings.namespace)
    return identity


def _refuse_unsafe(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> None:
    cache, parallel = vllm_config.cache_config, vllm_config.parallel_config
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if (size := getattr(parallel, name, 1)) > 1:
            raise IdentityError(f"kvferry: context parallelism ({name}={size}) is not supported: a block is split among ranks")
    if getattr(cache, "calculate_kv_scales", False):
        raise IdentityError("kvferry: calculate_kv_scales gives every engine scales of its own; blocks cannot be shared")
    if not cache.enable_prefix_caching:
        raise IdentityError("kvferry: blocks are found by their prefix-cache hashes: enable prefix caching")
    groups = compat.shared_group_ids(kv_cache_config)
    if not groups:
        raise IdentityError("kvferry: this model has no KV cache group whose blocks can be found by hash")
    if len(groups) > 1 and not compat.failures_of_groups():
        raise IdentityError(
            f"kvferry: vLLM {compat.release()} cannot be told of a failed load of a model with {len(groups)} KV cache groups"
        )
    for index in groups:
        kind = type(kv_cache_config.kv_cache_groups[index].kv_cache_spec).__name__
        if "Mamba" in kind or "CrossAttention" in kind:
            raise IdentityError(f"kvferry: KV cache group {index} is {kind}: its state is not blocks of a prefix")


def _group(kv_cache_config: KVCacheConfig, index: int, hash_tokens: int) -> Group:
    tokens = kv_cache_config.kv_cache_groups[index].kv_cache_spec.block_size
    if tokens % hash_tokens:
        raise IdentityError(f"kvferry: blocks of group {index} have {tokens} tokens, no multiple of a hash's {hash_tokens}")
    return Group(index, tokens, tokens // hash_tokens, _window(kv_cache_config, index, tokens))


def _layer_spec(kv_cache_config: KVCacheConfig, index: int) -> Any:
    """What a layer of the group is. The scheduler's configuration has one layer's spec where a worker's has all."""
    spec = kv_cache_config.kv_cache_groups[index].kv_cache_spec
    layers = getattr(spec, "kv_cache_specs", None)
    return next(iter(layers.values())) if layers else spec


def _window(kv_cache_config: KVCacheConfig, index: int, tokens: int) -> int | None:
    spec = _layer_spec(kv_cache_config, index)
    # A full group may name a window too: its layers slide, but vLLM keeps all of their blocks.
    if "SlidingWindow" not in type(spec).__name__:
        return None
    return math.ceil((spec.sliding_window - 1 + getattr(spec, "extra_retained_tokens", 0)) / tokens)


def _spec_words(kv_cache_config: KVCacheConfig, index: int) -> list[Any]:
    one = _layer_spec(kv_cache_config, index)
    names = ("num_kv_heads", "head_size", "head_size_v", "sliding_window", "attention_chunk_size")
    return [type(one).__name__, str(getattr(one, "dtype", "")).removeprefix("torch.")] + [getattr(one, n, None) for n in names]


def _config_digest(model: Any) -> str:
    """Of the model's own configuration: it tells apart models whose paths are alike."""
    to_dict = getattr(model.hf_config, "to_dict", None)
    fields = to_dict() if to_dict else {}
    # Where it was loaded from, and by which library, is not what it is.
    for name in ("_name_or_path", "transformers_version"):
        fields.pop(name, None)
    text = json.dumps(fields, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_CHARS]


def _device_type() -> str:
    from vllm.platforms import current_platform

    return str(current_platform.device_type)
