"""SGLang's HiCache on a machine without a GPU: the copies between the engine's memory and the host pool are kernels of a GPU, and
the host pool is pinned for one. These are plain copies here; pools, controller, tree and storage are SGLang's. And the attention
that runs without a GPU (torch_native, 0.5.23) writes sliding layers at their own slots, but reads them at those of the full layers.

A plugin of SGLang's own (`sglang.srt.plugins`): it is found where this folder is in PYTHONPATH, in every process of the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

POOL = "sglang.srt.mem_cache.pool_host.mha.MHATokenToKVPoolHost"
GROUP = "sglang.srt.distributed.parallel_state.GroupCoordinator"
ATTENTION = "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend"


def install() -> None:
    """What SGLang calls in each of its processes, before the engine starts."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(f"{POOL}.__init__", _unpinned, HookType.AROUND)
    HookRegistry.register(f"{POOL}.load_to_device_per_layer", _load, HookType.REPLACE)
    HookRegistry.register(f"{POOL}.backup_from_device_all_layer", _back_up, HookType.REPLACE)
    HookRegistry.register(f"{GROUP}.__init__", _without_nccl, HookType.AROUND)
    HookRegistry.register(f"{ATTENTION}._run_sdpa_forward_extend", _read_where_written, HookType.AROUND)
    HookRegistry.register(f"{ATTENTION}._run_sdpa_forward_decode", _read_where_written, HookType.AROUND)


def _unpinned(init: Callable[..., None], *args: Any, **settings: Any) -> None:
    init(*args, **{**settings, "pin_memory": False})


def _without_nccl(init: Callable[..., None], *args: Any, **settings: Any) -> None:
    # Ranks on processors talk by gloo.
    init(*args, **{**settings, "use_pynccl": False})


def _load(pool: Any, device_pool: Any, host: Any, device: Any, layer_id: int, io_backend: str, *, is_draft: bool = False) -> None:
    for engine, page, slot in _layer(pool, layer_id, host):
        engine[device] = page[slot]


def _back_up(pool: Any, device_pool: Any, host: Any, device: Any, io_backend: str) -> None:
    for layer_id in range(pool.layer_num):
        for engine, page, slot in _layer(pool, layer_id, host):
            page[slot] = engine[device]


def _layer(pool: Any, layer_id: int, host: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Of K, then of V: the engine's tensor, the host pool's view of that layer, and where the host indices are in it."""
    slot = (host // pool.page_size, host % pool.page_size) if pool.layout == "page_first_direct" else host
    yield pool.device_k_buffers[layer_id], pool.k_data_refs[layer_id], slot
    yield pool.device_v_buffers[layer_id], pool.v_data_refs[layer_id], slot


def _read_where_written(
    attend: Callable[..., Any], backend: Any, query: Any, output: Any, keys: Any, values: Any, slots: Any, *rest: Any, **more: Any
) -> Any:
    window = more.get("sliding_window_size")
    if backend.use_sliding_window_kv_pool and window is not None and window > -1:
        # What the window has left behind has no slot any more, and is masked.
        slots = backend.token_to_kv_pool.translate_loc_from_full_to_swa(slots).clamp(min=0)
    return attend(backend, query, output, keys, values, slots, *rest, **more)
