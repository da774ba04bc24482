"""The HiCache storage back end, driven through SGLang's real factory, host pools and data classes, over real agents.

Skipped where SGLang is not installed; tests/engines/README.md says how it is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Cluster, stopped

torch = pytest.importorskip("torch")
pytest.importorskip("sglang", reason="SGLang is not installed")

from sglang.srt.mem_cache.hicache_storage import (  # noqa: E402
    HiCacheStorageConfig,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
)
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool  # noqa: E402
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost  # noqa: E402
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory  # noqa: E402

import kvferry  # noqa: E402
from kvferry import Agent  # noqa: E402
from kvferry.sglang import KvferryStorage, key_bytes  # noqa: E402

PAGE, LAYERS, HEADS, DIM, TOKENS = 64, 4, 2, 64, 1024
DTYPE = torch.bfloat16
LAYOUTS = ("layer_first", "page_first", "page_first_direct")


def a_pool(layout: str, allocator: str = "shm") -> Any:
    device = MHATokenToKVPool(
        size=TOKENS,
        page_size=PAGE,
        dtype=DTYPE,
        head_num=HEADS,
        head_dim=DIM,
        layer_num=LAYERS,
        device="cpu",
        enable_memory_saver=False,
        enable_alt_stream=False,
    )
    return MHATokenToKVPoolHost(
        device._mha_buffer_info(),
        2.0,
        0,
        PAGE,
        layout,
        pin_memory=False,
        device="cpu",
        allocator_type=allocator,
        device_capacity_tokens=TOKENS,
        start_layer=0,
        end_layer=LAYERS,
    )


def a_config(layout: str, agent: Agent, model: str = "tiny", tp: tuple[int, int] = (0, 1), **extra: Any) -> Any:
    settings = {"socket": agent.socket, "pool_bytes": 4 << 20, **extra.pop("kvferry", {})}
    return HiCacheStorageConfig(
        tp_rank=tp[0],
        tp_size=tp[1],
        pp_rank=0,
        pp_size=1,
        attn_cp_rank=0,
        attn_cp_size=1,
        is_mla_model=False,
        enable_storage_metrics=False,
        is_page_first_layout=layout == "page_first",
        model_name=model,
        extra_config={
            "backend_name": "kvferry",
            "module_path": "kvferry.sglang",
            "class_name": "KvferryStorage",
            "interface_v1": 1,
            "kvferry": settings,
            **extra,
        },
    )


def a_storage(pool: Any, config: Any) -> KvferryStorage:
    made = StorageBackendFactory.create_backend("dynamic", config, pool)
    made.register_mem_pool_host(pool)
    made.on_host_pools_registered()
    return made


def fill(pool: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pool.kv_buffer.copy_(torch.randn(pool.kv_buffer.shape, generator=generator).to(DTYPE))


def page(pool: Any, indices: Any, at: int) -> Any:
    return pool.get_data_page(int(indices[at * PAGE])).clone()


def keys_of(seed: int, count: int) -> list[str]:
    return [f"{seed:08x}{at:056x}" for at in range(count)]


def announced(storage: KvferryStorage, keys: list[str]) -> None:
    deadline = time.monotonic() + 10
    while storage.batch_exists(keys) < len(keys):
        assert time.monotonic() < deadline, "the pages are not announced"
        time.sleep(0.01)


@pytest.fixture
def model() -> Iterator[str]:
    yield f"tiny-{os.urandom(4).hex()}"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("allocator", ["shm", "default"])
def test_pages_of_one_server_are_loaded_by_another(
    cluster: Cluster, layout: str, allocator: str, model: str
) -> None:
    ours, theirs = a_pool(layout, allocator), a_pool(layout, allocator)
    fill(ours, 1)
    fill(theirs, 2)
    one = a_storage(ours, a_config(layout, cluster.agent_a, model))
    two = a_storage(theirs, a_config(layout, cluster.agent_b, model))
    keys = keys_of(1, 5)
    stored, loaded = ours.alloc(5 * PAGE), theirs.alloc(9 * PAGE)[3 * PAGE : 8 * PAGE]
    assert two.batch_exists(keys) == 0
    assert one.batch_set_v1(keys, stored) == [True] * 5
    announced(two, keys)
    assert two.batch_exists([*keys, "ff" * 32, keys[0]]) == 5
    pages = [page(ours, stored, at) for at in range(5)]
    before = theirs.kv_buffer.clone()
    old = [page(theirs, loaded, at) for at in range(4)]

    # What was stored is a copy: SGLang overwrites its page.
    fill(ours, 3)
    assert two.batch_get_v1([*keys[:4], "ff" * 32], loaded) == [True] * 4 + [False]

    for at in range(4):
        assert torch.equal(page(theirs, loaded, at), pages[at])
    # Nothing else was touched.
    for at in range(4):
        theirs.set_from_flat_data_page(int(loaded[at * PAGE]), old[at])
    assert torch.equal(theirs.kv_buffer, before)
    # Both went straight into the pool, and the agent has forgotten where.
    assert two._kv()._region is not None
    region = next(it for it in two.client.stats().regions if it.region == two._kv()._region.id)
    assert (region.sealed, region.reserved, region.quarantined) == (0, 0, 0)
    # The same pages again, and stored again: nothing to do.
    assert two.batch_get_v1(keys, loaded) == [True] * 5
    assert one.batch_set_v1(keys, stored) == [True] * 5
    one.close()
    two.close()


def test_pages_are_copied_where_the_pool_cannot_be_shared(
    cluster: Cluster, model: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = a_pool("layer_first"), a_pool("layer_first", "default")
    # Private memory whose pages a device has, as it were.
    monkeypatch.setattr(theirs, "kv_buffer", theirs.kv_buffer.clone())
    monkeypatch.setattr(theirs, "pin_memory", True)
    fill(ours, 1)
    one = a_storage(ours, a_config("layer_first", cluster.agent_a, model))
    two = a_storage(theirs, a_config("layer_first", cluster.agent_b, model))
    assert '"allocator": "shm"' in caplog.text
    keys, stored, loaded = keys_of(2, 3), ours.alloc(3 * PAGE), theirs.alloc(3 * PAGE)
    assert one.batch_set_v1(keys, stored) == [True] * 3
    announced(two, keys)
    assert two.batch_get_v1(keys, loaded) == [True] * 3
    for at in range(3):
        assert torch.equal(page(theirs, loaded, at), page(ours, stored, at))
    assert two.client.stats().pins == 0
    one.close()
    two.close()


def test_servers_meet_only_where_their_pages_are_the_same_bytes(cluster: Cluster, model: str) -> None:
    names = set()
    made = []
    variants = [
        a_config("layer_first", cluster.agent_a, model),
        a_config("layer_first", cluster.agent_a, model, tp=(0, 2)),
        a_config("layer_first", cluster.agent_a, model, tp=(1, 2)),
        a_config("layer_first", cluster.agent_a, model + "-other"),
        a_config("layer_first", cluster.agent_a, model, kvferry={"revision": "2"}),
        a_config("layer_first", cluster.agent_a, model, kvferry={"namespace": "team"}),
        a_config("layer_first", cluster.agent_a, "org/" + "long" * 100),
    ]
    for config in variants:
        pool = a_pool("layer_first")
        made.append(a_storage(pool, config))
        names.add(made[-1]._kv().namespace.name)
    pool = a_pool("page_first")
    made.append(a_storage(pool, a_config("page_first", cluster.agent_a, model)))
    names.add(made[-1]._kv().namespace.name)
    assert len(names) == len(variants) + 1
    again = a_storage(a_pool("layer_first"), variants[0])
    assert again._kv().namespace == made[0]._kv().namespace
    for storage in [*made, again]:
        storage.close()


def test_what_is_configured_wrongly_ends_the_start(cluster: Cluster, model: str) -> None:
    pool = a_pool("layer_first")
    with pytest.raises(ValueError, match="no settings .'sokket'"):
        a_storage(pool, a_config("layer_first", cluster.agent_a, model, kvferry={"sokket": "x"}))
    with pytest.raises(ValueError, match="off, sampled or always"):
        a_storage(pool, a_config("layer_first", cluster.agent_a, model, kvferry={"checksum": "some"}))
    with pytest.raises(kvferry.AgentUnreachableError):
        a_storage(pool, a_config("layer_first", cluster.agent_a, model, kvferry={"socket": "/nowhere"}))


def test_an_outage_is_said_and_costs_pages_only(
    over_tcp: Cluster, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = a_pool("page_first"), a_pool("page_first")
    fill(ours, 1)
    one = a_storage(ours, a_config("page_first", over_tcp.agent_a, model))
    quick = {"pull_timeout_s": 0.5, "lookup_timeout_s": 0.5}
    two = a_storage(theirs, a_config("page_first", over_tcp.agent_b, model, kvferry=quick))
    keys, stored, loaded = keys_of(3, 2), ours.alloc(2 * PAGE), theirs.alloc(2 * PAGE)
    assert one.batch_set_v1(keys, stored) == [True] * 2
    announced(two, keys)
    with stopped(over_tcp.agent_a):
        assert two.batch_get_v1(keys, loaded) == [False] * 2
        # Its pages are SGLang's again: nothing writes to them, and the agent knows nothing of them.
        region = next(it for it in two.client.stats().regions if it.region == two._kv()._region.id)
        assert (region.free, region.reserved) == (region.slots, 0)
    assert two.counts() == {"missed_pages": 2}

    os.kill(over_tcp.agent_b.pid, signal.SIGKILL)
    assert two.batch_exists(keys) == 0
    assert two.batch_get_v1(keys, loaded) == [False] * 2
    assert two.batch_set_v1(keys, loaded) == [False] * 2
    assert two.counts()["failures"] == 3
    assert "agent b" in caplog.text
    two.close()
    one.close()


def test_without_a_coordinator_pages_are_stored_and_found_when_one_is_back(over_tcp: Cluster, model: str) -> None:
    ours, theirs = a_pool("page_first"), a_pool("page_first")
    fill(ours, 1)
    quick = {"lookup_timeout_s": 0.5}
    one = a_storage(ours, a_config("page_first", over_tcp.agent_a, model, kvferry=quick))
    two = a_storage(theirs, a_config("page_first", over_tcp.agent_b, model, kvferry=quick))
    keys, stored, loaded = keys_of(7, 2), ours.alloc(2 * PAGE), theirs.alloc(2 * PAGE)
    listen = over_tcp.coordinator.announced["listen"]
    over_tcp.coordinator.stop()
    assert one.batch_set_v1(keys, stored) == [True] * 2
    assert one.batch_set_v1(keys, stored) == [True] * 2, "once more the same"
    assert two.batch_exists(keys) == 0
    with kvferry.Coordinator(listen=listen):
        announced(two, keys)
        assert two.batch_get_v1(keys, loaded) == [True] * 2
        assert torch.equal(page(theirs, loaded, 1), page(ours, stored, 1))
        one.close()
        two.close()


def test_an_agent_that_comes_back_is_used_again(
    over_tcp: Cluster, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvferry.sglang._REVIVE_EVERY_S", 0.0)
    pool = a_pool("page_first")
    fill(pool, 1)
    socket = os.path.join(os.path.dirname(over_tcp.agent_b.socket), "again.sock")
    options = {"node": "again", "coordinators": [over_tcp.coordinator.url], "socket": socket, "pool_bytes": "4MiB"}
    first = Agent(**options)
    storage = a_storage(pool, a_config("page_first", first, model))
    keys, stored = keys_of(4, 2), pool.alloc(2 * PAGE)
    assert storage.batch_set_v1(keys, stored) == [True] * 2
    os.kill(first.pid, signal.SIGKILL)
    assert storage.batch_exists(keys) == 0
    with Agent(**options):
        assert storage.batch_exists(keys) == 0  # a new lifetime holds nothing
        assert storage.batch_set_v1(keys, stored) == [True] * 2
        assert storage.batch_exists(keys) == 2
        loaded = pool.alloc(2 * PAGE)
        assert storage.batch_get_v1(keys, loaded) == [True] * 2
        assert torch.equal(page(pool, loaded, 1), page(pool, stored, 1))
        storage.close()
    first.stop()


def test_hybrid_pools_are_found_and_loaded_by_their_own_policies(cluster: Cluster, model: str) -> None:
    pools = [{name: a_pool("page_first") for name in ("kv", "swa", "draft")} for _ in range(2)]
    storages = []
    for agent, mine in zip((cluster.agent_a, cluster.agent_b), pools):
        storage = a_storage(mine["kv"], a_config("page_first", agent, model))
        storage.register_mem_host_pool_v2(mine["kv"], PoolName.KV)
        storage.register_mem_host_pool_v2(mine["swa"], PoolName.SWA)
        storage.register_mem_host_pool_v2(mine["draft"], PoolName.DRAFT)
        storages.append(storage)
    one, two = storages
    for seed, pool in enumerate(pools[0].values()):
        fill(pool, seed)
    keys = keys_of(5, 4)
    indices = {name: pool.alloc(4 * PAGE) for name, pool in pools[0].items()}
    assert one.batch_set_v1(keys, indices["kv"]) == [True] * 4
    # Pages 0 to 2 of the one, the last two of the other.
    done = one.batch_set_v2(
        [
            PoolTransfer(PoolName.DRAFT, indices["draft"][: 3 * PAGE], keys=keys[:3]),
            PoolTransfer(PoolName.SWA, indices["swa"][2 * PAGE :], keys=keys[2:]),
        ]
    )
    assert done == {PoolName.DRAFT: [True] * 3, PoolName.SWA: [True] * 2}
    # Not as many pages as keys.
    wrong = one.batch_set_v2([PoolTransfer(PoolName.SWA, indices["swa"][:PAGE], keys=keys[2:])])
    assert wrong == {PoolName.SWA: [False] * 2}
    announced(two, keys)
    deadline = time.monotonic() + 10
    while not two._pools["swa"].places([key_bytes(keys[3])])[0]:
        assert time.monotonic() < deadline
        time.sleep(0.01)

    def query(*transfers: PoolTransfer) -> Any:
        return two.batch_exists_v2(keys, list(transfers))

    assert query().kv_hit_pages == 4
    all_pages = query(PoolTransfer(PoolName.DRAFT))
    assert (all_pages.kv_hit_pages, all_pages.extra_pool_hit_pages) == (3, {PoolName.KV: 4, PoolName.DRAFT: 3})
    trailing = PoolTransfer(PoolName.SWA, keys=keys[:2], hit_policy=PoolHitPolicy.TRAILING_PAGES)
    last = query(trailing)
    assert (last.kv_hit_pages, last.restorable_prefix_pages) == (4, [4])
    both = query(PoolTransfer(PoolName.DRAFT), trailing)
    assert (both.kv_hit_pages, both.restorable_prefix_pages) == (0, [])

    loaded = pools[1]["draft"].alloc(4 * PAGE)
    got = two.batch_get_v2([PoolTransfer(PoolName.DRAFT, loaded, keys=keys)])
    assert got == {PoolName.DRAFT: [True, True, True, False]}
    for at in range(3):
        assert torch.equal(page(pools[1]["draft"], loaded, at), page(pools[0]["draft"], indices["draft"], at))
    for storage in storages:
        storage.close()


def test_pages_by_value_without_interface_v1(cluster: Cluster, model: str) -> None:
    ours, theirs = a_pool("layer_first"), a_pool("layer_first")
    fill(ours, 1)
    one = a_storage(ours, a_config("layer_first", cluster.agent_a, model, interface_v1=0))
    two = a_storage(theirs, a_config("layer_first", cluster.agent_b, model, interface_v1=0))
    keys, stored = keys_of(6, 2), ours.alloc(2 * PAGE)
    pages = [page(ours, stored, at) for at in range(2)]
    assert two.batch_exists(keys) == 0
    assert one.batch_set(keys, pages)
    announced(two, keys)
    targets = [theirs.get_dummy_flat_data_page() for _ in range(3)]
    got = two.batch_get([*keys, "ff" * 32], targets)
    assert got[2] is None
    for at in range(2):
        assert got[at] is targets[at] and torch.equal(targets[at], pages[at])
    assert two.exists(keys[0]) and not two.exists("ff" * 32)
    assert two.get("ff" * 32, targets[0]) is None
    assert one.set(keys[0], pages[0])
    one.clear()
    assert not one.client.stats().pins
    one.close()
    two.close()


def test_the_real_controller_backs_up_and_prefetches(cluster: Cluster, model: str) -> None:
    server = Path(__file__).parent / "sglang_server.py"
    log = tempfile.TemporaryFile()

    def start(role: str, agent: Agent) -> subprocess.Popen[str]:
        command = [sys.executable, str(server), role, agent.socket, model]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )

    def said(process: subprocess.Popen[str], word: str) -> None:
        assert process.stdout is not None
        lines = list(iter(process.stdout.readline, ""))  # SGLang may print too
        log.seek(0)
        assert word + "\n" in lines, log.read().decode()[-4000:]

    one = start("store", cluster.agent_a)
    assert one.stdin is not None
    one.stdin.close()
    said(one, "stored")
    one.wait(10)
    two = start("load", cluster.agent_b)
    said(two, "loaded")
    two.wait(10)
    log.close()


def test_keys_are_the_hashes_that_they_are() -> None:
    key = "0123456789abcdef" * 4
    assert key_bytes(key) == bytes.fromhex(key)
    assert len(key_bytes("something else")) == 32
    assert key_bytes("zz" * 32) != key_bytes("yy" * 32)
