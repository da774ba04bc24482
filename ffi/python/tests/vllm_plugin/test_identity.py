"""Whose blocks may meet: every part of the description counts, and what cannot be shared safely is refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="a KV cache is tensors")
pytest.importorskip("vllm", reason="vLLM is not installed: tests/engines/README.md says how it is")

from kvferry.vllm import compat
from kvferry.vllm.identity import Identity, IdentityError, identify
from kvferry.vllm.settings import Settings
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec


class Engine:
    """As much of vLLM's configuration as is looked at, with vLLM's own cache specs."""

    def __init__(self) -> None:
        self.model = SimpleNamespace(
            model="/models/tiny",
            revision=None,
            dtype=torch.float16,
            quantization=None,
            hf_config=SimpleNamespace(to_dict=lambda: {"hidden_size": 64, "_name_or_path": "x"}),
        )
        self.cache = SimpleNamespace(
            prefix_caching_hash_algo="sha256",
            cache_dtype="auto",
            block_size=16,
            enable_prefix_caching=True,
            prefix_match_unit=None,
            calculate_kv_scales=False,
        )
        self.parallel = SimpleNamespace(
            tensor_parallel_size=2,
            pipeline_parallel_size=1,
            decode_context_parallel_size=1,
            prefill_context_parallel_size=1,
        )
        self.heads = 2
        self.groups = 1

    def identify(self, **settings: Any) -> Identity:
        config = SimpleNamespace(
            model_config=self.model, cache_config=self.cache, parallel_config=self.parallel, kv_transfer_config=None
        )
        spec = FullAttentionSpec(block_size=16, num_kv_heads=self.heads, head_size=64, dtype=torch.float16)
        groups = [KVCacheGroupSpec([f"layer.{i}"], spec) for i in range(self.groups)]
        caches = KVCacheConfig(num_blocks=8, kv_cache_tensors=[], kv_cache_groups=groups)
        return identify(config, caches, Settings(**settings))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")


def test_two_engines_alike_arrive_at_the_same_names() -> None:
    one, two = Engine().identify(), Engine().identify()
    assert one == two and one.hash_len == 32
    assert one.base.startswith("vllm/tiny/")
    assert one.all_ranks(0) == [f"{one.base}/tp0of2-pp0of1-g0", f"{one.base}/tp1of2-pp0of1-g0"]


CHANGES: dict[str, Callable[[Engine], Any]] = {
    "model": lambda e: setattr(e.model, "model", "/other/tiny"),
    "revision": lambda e: setattr(e.model, "revision", "abc"),
    "dtype": lambda e: setattr(e.model, "dtype", torch.bfloat16),
    "quantization": lambda e: setattr(e.model, "quantization", "fp8"),
    "configuration": lambda e: setattr(e.model, "hf_config", SimpleNamespace(to_dict=lambda: {"hidden_size": 128})),
    "cache dtype": lambda e: setattr(e.cache, "cache_dtype", "fp8"),
    "hash": lambda e: setattr(e.cache, "prefix_caching_hash_algo", "sha256_cbor"),
    "heads": lambda e: setattr(e, "heads", 4),
    "tensor parallelism": lambda e: setattr(e.parallel, "tensor_parallel_size", 4),
    "pipeline parallelism": lambda e: setattr(e.parallel, "pipeline_parallel_size", 2),
}


@pytest.mark.parametrize("what", CHANGES)
def test_engines_that_differ_share_nothing(what: str) -> None:
    other = Engine()
    CHANGES[what](other)
    assert other.identify().base != Engine().identify().base


def test_the_seed_of_the_hashes_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Engine().identify().base
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    assert Engine().identify().base != first


def test_hashes_that_start_at_random_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED")
    engine = Engine()
    engine.cache.prefix_caching_hash_algo = "xxhash"
    if compat.hash_seed("xxhash") is None:
        with pytest.raises(IdentityError, match="PYTHONHASHSEED"):
            engine.identify()


def test_one_model_at_two_paths_is_one_where_it_is_said() -> None:
    here, there = Engine(), Engine()
    there.model.model = "/elsewhere/llama"
    assert here.identify(model_id="m").base == there.identify(model_id="m").base


def test_tenants_share_nothing() -> None:
    assert Engine().identify(tenant="a").base != Engine().identify(tenant="b").base


def test_an_engine_that_arrives_at_another_namespace_than_expected_does_not_start() -> None:
    name = Engine().identify().base
    assert Engine().identify(namespace=name).base == name
    other = Engine()
    other.model.dtype = torch.bfloat16
    with pytest.raises(IdentityError, match="bfloat16"):
        other.identify(namespace=name)


REFUSED: dict[str, Callable[[Engine], Any]] = {
    "context parallelism": lambda e: setattr(e.parallel, "decode_context_parallel_size", 2),
    "calculate_kv_scales": lambda e: setattr(e.cache, "calculate_kv_scales", True),
    "prefix caching": lambda e: setattr(e.cache, "enable_prefix_caching", False),
    "no KV cache group": lambda e: setattr(e, "groups", 0),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_shared_safely_is_refused(what: str) -> None:
    engine = Engine()
    REFUSED[what](engine)
    with pytest.raises(IdentityError, match=what):
        engine.identify()
