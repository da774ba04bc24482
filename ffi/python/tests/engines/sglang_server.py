"""One server's cache half, without a model: SGLang's real HiCacheController with its threads, on the processor, over the storage
back end. `store` backs three pages up; `load`, in another process on another agent, prefetches them and compares.

    python sglang_server.py store|load SOCKET MODEL
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import sglang.srt.mem_cache.pool_host.mha as mha
import torch
import torch.distributed as dist
from sglang.srt.managers.cache_controller import HiCacheController, get_storage_hash_str
from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.runtime_context import _parallel_fields, get_parallel

PAGE, LAYERS, HEADS, DIM, TOKENS, PAGES = 64, 4, 2, 64, 1024, 3
DTYPE = torch.bfloat16
PARALLEL = {
    **{f"{kind}_size": 1 for kind in ("attn_dcp", "tp", "pp", "attn_tp", "attn_dp", "attn_cp", "dcp")},
    **{f"{kind}_rank": 0 for kind in ("attn_dcp", "tp", "pp", "attn_tp", "attn_dp", "attn_cp", "dcp")},
}


def copied(src_layers: Any, dst_layers: Any, src_indices: Any, dst_indices: Any, page_size: int) -> None:
    """What a GPU's kernel does between device and host."""
    for source, target in zip(src_layers, dst_layers):
        target[dst_indices] = source[src_indices]


def within(seconds: float, done: Any) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "not done in time"
        time.sleep(0.01)


def a_controller(socket: str, model: str) -> tuple[Any, Any, Any]:
    mha.transfer_kv_direct = copied  # defined by SGLang only where there is a GPU
    folder = f"file:///dev/shm/kvferry-gloo-{os.getpid()}"
    dist.init_process_group("gloo", init_method=folder, rank=0, world_size=1)
    known = _parallel_fields()
    get_parallel().override_permanently(**{key: value for key, value in PARALLEL.items() if key in known})
    pool = MHATokenToKVPool(
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
    generator = torch.Generator().manual_seed(11)
    for buffer in [*pool.k_buffer, *pool.v_buffer]:
        buffer.copy_(torch.randn(buffer.shape, generator=generator).to(DTYPE))
    host = mha.MHATokenToKVPoolHost(
        pool._mha_buffer_info(),
        2.0,
        0,
        PAGE,
        "layer_first",  # what SGLang moves without kernels of a GPU
        pin_memory=False,
        device="cpu",
        allocator_type="shm",
        device_capacity_tokens=TOKENS,
        start_layer=0,
        end_layer=LAYERS,
    )
    allocator = PagedTokenToKVPoolAllocator(TOKENS, PAGE, DTYPE, "cpu", pool, need_sort=False)
    controller = HiCacheController(
        allocator,
        host,
        PAGE,
        dist.new_group([0], backend="gloo"),
        threading.Event(),
        io_backend="direct",
        storage_backend="dynamic",
        prefetch_threshold=PAGE,
        model_name=model,
        storage_backend_extra_config={
            "backend_name": "kvferry",
            "module_path": "kvferry.sglang",
            "class_name": "KvferryStorage",
            "interface_v1": 1,
            "kvferry": {"socket": socket, "pool_bytes": 4 << 20},
        },
    )
    return controller, host, (pool, allocator)


def expected(pool: Any, device: Any, at: int) -> Any:
    indices = device[at * PAGE : (at + 1) * PAGE]
    return [buffer[indices] for buffer in [*pool.k_buffer, *pool.v_buffer]]


def main(role: str, socket: str, model: str) -> None:
    controller, host, (pool, allocator) = a_controller(socket, model)
    assert type(controller.storage_backend).__name__ == "KvferryStorage"
    assert controller.page_get_func.__name__ == "_page_get_zero_copy"
    tokens = list(range(1000, 1000 + PAGES * PAGE))
    device = allocator.alloc(PAGES * PAGE)
    if role == "store":
        pages = controller.write(device, node_id=1)
        if not controller.ack_write_queue:
            controller.start_writing()
        keys = list(get_storage_hash_str(tokens, None, page_size=PAGE))
        controller.write_storage(pages, tokens, hash_value=keys)
        within(20, controller.ack_backup_queue.qsize)
        assert controller.storage_backend.batch_exists(keys) == PAGES
        print("stored", flush=True)
        sys.stdin.read()  # The agent keeps the pages; the server goes.
    else:
        # Another lifetime of the same weights has the same values on its device.
        controller.prefetch("request", tokens)
        operation = controller.prefetch_hit_queue.get(timeout=20)
        assert operation.storage_hit_count == PAGES * PAGE, operation.storage_hit_count
        operation.host_indices = host.alloc(operation.storage_hit_count)
        controller.prefetch_buffer.put(operation)
        completed = 0
        while True:
            ack = controller.ack_prefetch_queue.get(timeout=20)
            if ack.completed_req:
                break
            completed = max(completed, ack.completed_tokens or 0)
        assert completed == PAGES * PAGE, completed
        for at in range(PAGES):
            first = int(operation.host_indices[at * PAGE])
            got = [view[first : first + PAGE] for view in host_views(host)]
            for found, wanted in zip(got, expected(pool, device, at)):
                assert torch.equal(found, wanted)
        print("loaded", flush=True)
    os._exit(0)


def host_views(host: Any) -> list[Any]:
    """Per layer K, then V: [token, head, dim]."""
    return [host.kv_buffer[half][layer] for half in (0, 1) for layer in range(LAYERS)]


if __name__ == "__main__":
    main(*sys.argv[1:])
