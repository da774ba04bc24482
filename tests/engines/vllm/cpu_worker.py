"""vLLM's tiered offloading on a machine without a GPU: vLLM's own worker for the copies between the engine's memory and the CPU
region refuses such a platform. Only that worker is another one here, a memcpy; region, manager and tiers are vLLM's.

    "spec_name": "CpuTieringSpec", "spec_module_path": "cpu_worker"
"""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class MemcpyWorker(OffloadingWorker):
    """Copies at once, in the caller's thread."""

    def __init__(self, caches: Any, blocks_per_chunk: int, region: Any) -> None:
        self._per_chunk, self._region = blocks_per_chunk, region
        self._refs = caches.group_data_refs
        self._device = [tensor.tensor for tensor in caches.tensors]
        self._host = [region.create_next_worker_view(t.page_size_bytes * blocks_per_chunk) for t in caches.tensors]
        self._done: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        return self._copy(job_id, src_spec, dst_spec, to_host=True)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        return self._copy(job_id, dst_spec, src_spec, to_host=False)

    def get_finished(self) -> list[TransferResult]:
        done, self._done = self._done, []
        return done

    def wait(self, job_ids: set[int]) -> None:
        return

    def shutdown(self) -> None:
        self._device.clear()
        self._host.clear()
        self._region.cleanup()

    def _copy(self, job_id: int, device: Any, host: Any, *, to_host: bool) -> bool:
        began, nbytes, at_device, at_host = time.perf_counter(), 0, 0, 0
        chunks = host.chunk_ids if hasattr(host, "chunk_ids") else host.block_ids
        for group, (count, first) in enumerate(zip(device.group_sizes, device.block_indices)):
            if count == 0:
                continue
            skipped = first % self._per_chunk
            for ref in self._refs[group]:
                page = self._device[ref.tensor_idx].shape[1]
                for i in range(count):
                    place = i + skipped
                    chunk = self._host[ref.tensor_idx][int(chunks[at_host + place // self._per_chunk])]
                    theirs = chunk[(place % self._per_chunk) * page :][: ref.page_size_bytes]
                    ours = self._device[ref.tensor_idx][int(device.block_ids[at_device + i])][: ref.page_size_bytes]
                    (theirs if to_host else ours).copy_(ours if to_host else theirs)
                    nbytes += ref.page_size_bytes
            at_device += count
            at_host += -(-(count + skipped) // self._per_chunk)
        self._done.append(TransferResult(job_id, True, nbytes, time.perf_counter() - began))
        return True


class CpuTieringSpec(TieringOffloadingSpec):
    """vLLM's tiering, with the worker above."""

    def get_worker(self, kv_caches: Any) -> Any:
        if not self._worker:
            self._worker = self.create_worker(kv_caches)
        return self._worker

    def create_worker(self, kv_caches: Any) -> Any:
        # 0.28 calls chunks blocks.
        chunks, nbytes = (
            ("num_chunks", "kv_bytes_per_chunk") if hasattr(self, "num_chunks") else ("num_blocks", "kv_bytes_per_block")
        )
        sizes = {
            "engine_id": self._engine_id,
            "rank": self.config.parallel.rank,
            "cpu_page_size": self.cpu_page_size_per_worker,
            chunks: getattr(self, chunks),
            nbytes: self.kv_bytes_per_chunk,
        }
        region = SharedOffloadRegion(**sizes)
        try:
            return MemcpyWorker(kv_caches, self.blocks_per_chunk, region)
        except Exception:
            region.cleanup()
            raise
