"""`KvferryConnector`: vLLM's KV connector over kvferry.

    {"kv_connector": "KvferryConnector", "kv_connector_module_path": "kvferry.vllm", "kv_role": "kv_both",
     "kv_load_failure_policy": "recompute", "kv_connector_extra_config": {"socket": "/run/kvferry/agent.sock"}}

This file only turns vLLM's calls into those of the two halves.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)

import kvferry

from . import compat
from .identity import IdentityError, identify
from .link import Link, connect
from .metadata import StepOrders
from .scheduler import SchedulerHalf
from .settings import Settings
from .stats import KvferryPromMetrics, KvferryStats, of_within_step
from .worker import WorkerHalf

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

# Under vLLM's name: its handlers and levels hold for it.
logger = logging.getLogger("vllm.kvferry.connector")


@dataclass
class KvferryMetadata(KVConnectorMetadata):
    """A step's orders, from the scheduler to the workers."""

    orders: StepOrders = field(default_factory=StepOrders)


class KvferryConnector(KVConnectorBase_V1, SupportsHMA):
    """Prefix sharing among replicas, and prefill/decode disaggregation. See docs/vllm.md."""

    if compat.peer_hit_source() is not None:
        _cache_hit_source = compat.peer_hit_source()

    @property
    def requires_kv_delivery(self) -> bool:
        # A block that was not published is computed by whoever lacks it.
        return False

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        transfer = vllm_config.kv_transfer_config
        settings = Settings.parse(transfer.kv_connector_extra_config or {})
        if transfer.kv_load_failure_policy != "recompute":
            raise IdentityError(
                "kvferry: set kv_load_failure_policy to 'recompute': a peer may go away while its blocks are on their way, "
                f"and with {transfer.kv_load_failure_policy!r} its readers' requests would fail"
            )
        if compat.minor() not in compat.TESTED:
            logger.warning("kvferry is tested with vLLM %s, not %s", ", ".join(compat.TESTED), compat.release())
        identity = identify(vllm_config, kv_cache_config, settings)
        if settings.load == "sync" and len(identity.groups) > 1:
            raise IdentityError("kvferry: loads within a step ('load': 'sync') cannot fail safely with several KV cache groups")
        self._layers = {group.index: kv_cache_config.kv_cache_groups[group.index].layer_names for group in identity.groups}
        self._scheduler: SchedulerHalf | None = None
        self._worker: WorkerHalf | None = None
        if role is KVConnectorRole.SCHEDULER:
            logger.info("kvferry: namespace %s is %s", identity.base, json.dumps(identity.description, sort_keys=True))
            link: Link[kvferry.Client] = Link(lambda: connect(settings.socket), lambda client: client, settings.reconnect_s)
            link.open()
            self._link = link
            self._scheduler = SchedulerHalf(
                identity, settings, link, produces=transfer.is_kv_producer, consumes=transfer.is_kv_consumer
            )
        else:
            from vllm.distributed.parallel_state import get_pp_group, get_tensor_model_parallel_rank

            self._worker = WorkerHalf(
                identity,
                settings,
                get_tensor_model_parallel_rank(),
                get_pp_group().rank_in_group,
                kv_cache_config.num_blocks,
            )

    @property
    def _sched(self) -> SchedulerHalf:
        assert self._scheduler is not None, "a call of the scheduler's half, in a worker"
        return self._scheduler

    @property
    def _work(self) -> WorkerHalf:
        assert self._worker is not None, "a call of the worker's half, in the scheduler"
        return self._worker

    def _orders(self) -> StepOrders:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, KvferryMetadata)
        return metadata.orders

    # --- the scheduler's half

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        return self._sched.matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        self._sched.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        return KvferryMetadata(self._sched.step(scheduler_output))

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        self._sched.worker_said(
            connector_output.finished_recving or (),
            getattr(connector_output, "failed_recving", None) or (),
            connector_output.invalid_block_ids or (),
            of_within_step(connector_output.kv_connector_stats),
        )

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self._sched.finished(request)

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self._sched.finished(request)

    def reset_cache(self) -> bool | None:
        return self._scheduler.reset() if self._scheduler is not None else None

    # --- the worker's half

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self._work.register(kv_caches, self._layers)

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        assert isinstance(kv_connector_metadata, KvferryMetadata)
        self._work.before_forward(kv_connector_metadata.orders)

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        self._work.start_loads(self._orders())

    def wait_for_layer_load(self, layer_name: str) -> None:
        self._work.wait_for_layer(layer_name)

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        # A block is published whole, when its last layer is: see wait_for_save.
        return

    def wait_for_save(self) -> None:
        self._work.publish(self._orders())

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        return None, self._work.ended(self._orders().idle)[0] or None

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        ended, failed = self._work.ended(self._orders().idle)
        # One group's failures are told block by block, so that what came is kept; several groups' only as a whole.
        if len(self._layers) == 1:
            failed = set()
        return compat.TransferResults(finished_recving=ended, failed_recving=failed)

    def get_block_ids_with_load_errors(self) -> set[int]:
        bad = self._work.bad_blocks()
        return bad if len(self._layers) == 1 else set()

    # --- both

    def get_kv_connector_stats(self) -> KvferryStats | None:
        if self._worker is not None:
            return self._worker.take_stats()
        stats = KvferryStats()
        stats.looked_up(self._sched.lookups.take_counts())
        return None if stats.is_empty() else stats

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KvferryStats:
        return KvferryStats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: VllmConfig, metric_types: Any, labelnames: list[str], per_engine_labelvalues: Any
    ) -> KvferryPromMetrics:
        return KvferryPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        return extra_config.get("load") == "sync"

    def shutdown(self) -> None:
        if self._worker is not None:
            self._worker.close()
        elif self._scheduler is not None:
            self._link.close()
