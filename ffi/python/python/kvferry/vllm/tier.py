"""`KvferryTier`: a secondary tier of vLLM's tiered offloading. What one engine has offloaded to its CPU region, all have.

    "secondary_tiers": [{"type": "KvferryTier", "module_path": "kvferry.vllm", "socket": "/run/kvferry/agent.sock"}],
    "eviction_policy": "KvferryPolicy", "cache_policy_module_path": "kvferry.vllm"

vLLM's region is registered once. A store seals chunks where they lie; a load pulls into the chunks that vLLM set
aside; an eviction withdraws first (`policy.py`). No byte is copied within a host. All of vLLM's calls run in the
scheduler's thread: they leave work for a thread of the tier's own, and wait for nothing but a withdrawal.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm.v1.kv_offload.base import LookupResult, Medium, ReqContext, RequestOffloadingContext
from vllm.v1.kv_offload.tiering.base import SecondaryTierManager

import kvferry

from . import compat
from .link import Link, connect
from .policy import KvferryPolicy
from .settings import Settings
from .tier_identity import tier_namespace
from .tier_lookups import TierLookups
from .tier_slots import Slots

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import OffloadingSpec

# Under vLLM's name: its handlers and levels hold for it.
logger = logging.getLogger("vllm.kvferry.tier")

# Jobs that wait for the tier's thread: beyond, a store is dropped and a load has failed.
MAX_JOBS = 4_096
# How often the thread looks at pulls under way; what it waits for at most where there is nothing to do.
PULL_PAUSE_S = 0.001
IDLE_S = 0.5
# Between two looks at a slot that a read which was given up may still write to.
SETTLE_PAUSE_S = 0.02
# Published chunks stay for so long after an agent has not answered: each attempt costs the scheduler its timeout.
STOPPED_PAUSE_S = 5.0
# A shutdown waits so long for what is under way; after it the connection ends, and all with it.
SHUTDOWN_BOUND_S = 30.0


@dataclass
class _Job:
    """A store or a load, as vLLM gave it."""

    number: int
    keys: list[bytes]
    chunks: list[int]
    load: bool
    began: float = field(default_factory=time.monotonic)


@dataclass
class _Loading:
    job: _Job
    slots: Slots
    pull: kvferry.Pull
    unsettled: set[int] = field(default_factory=set)
    came: list[bytes] = field(default_factory=list)
    ended: bool = False


class KvferryTier(SecondaryTierManager):
    """See the module. Failures are misses by their deadline; a chunk whose load failed is a miss for ten seconds."""

    medium = Medium.CPU
    if compat.peer_hit_source() is not None:
        cache_hit_source = compat.peer_hit_source()

    def __init__(self, offloading_spec: OffloadingSpec, primary_kv_view: memoryview, tier_type: str, **given: Any) -> None:
        # 0.31 on hand in a detector of slow tiers.
        base = {key: given.pop(key) for key in ("backpressure_detector",) if key in given}
        super().__init__(offloading_spec=offloading_spec, primary_kv_view=primary_kv_view, tier_type=tier_type, **base)
        self._settings = Settings.parse(given, ignored=frozenset({"locality"}))
        assert primary_kv_view.shape is not None and primary_kv_view.strides is not None, "vLLM's view is chunks x bytes"
        chunks, self._stride = primary_kv_view.shape[0], primary_kv_view.strides[0]
        if not KvferryPolicy.claim(chunks, self):
            raise ValueError(
                'kvferry: KvferryTier needs "eviction_policy": "KvferryPolicy" and "cache_policy_module_path": "kvferry.vllm" in '
                "kv_connector_extra_config: without it nobody would be told when a published chunk is overwritten"
            )
        self._view, self._chunks = primary_kv_view, chunks
        self._namespace = tier_namespace(offloading_spec, primary_kv_view, self._settings)
        self._link: Link[Slots] = Link(lambda: connect(self._settings.socket), self._begin, self._settings.reconnect_s)
        slots = self._link.open()
        logger.info(
            "kvferry: tier on agent %s, namespace %s, %d chunks of %d bytes in place",
            slots.client.node,
            self._namespace.name,
            chunks,
            self._namespace.layout.block_bytes,
        )
        self._lookups = TierLookups(self._ask, self._lookup_failed, self._settings.lookup_timeout_s)
        self._jobs: queue.Queue[_Job] = queue.Queue(MAX_JOBS)
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._open_jobs = 0
        self._no_evictions_until = 0.0
        self._idle = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvferry-tier", daemon=True)
        self._thread.start()

    # --- vLLM's calls, in the scheduler's thread

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def lookup(self, key: bytes, req_context: ReqContext) -> LookupResult:
        found = self._lookups.find(time.monotonic(), bytes(key))
        if found is None:
            return LookupResult.RETRY
        return LookupResult.HIT if found else LookupResult.MISS

    def on_schedule_end(self, context: Any) -> None:
        self._lookups.step(time.monotonic())

    def submit_store(self, job_metadata: Any) -> None:
        self._submit(job_metadata, load=False)

    def submit_load(self, job_metadata: Any) -> None:
        self._submit(job_metadata, load=True)

    def get_finished_jobs(self) -> Iterable[Any]:
        finished = []
        with contextlib.suppress(queue.Empty):
            while True:
                result, refused = self._results.get_nowait()
                self._lookups.refuse(time.monotonic(), refused)
                finished.append(result)
        return finished

    def drain_jobs(self) -> None:
        self._drain(None)

    def shutdown(self) -> None:
        self._drain(SHUTDOWN_BOUND_S)
        self._stop.set()
        self._thread.join()
        # Ends the region too, so that nobody reads the memory that vLLM is about to give back.
        self._link.close()

    # --- the policy's call, in the scheduler's thread

    def withdraw(self, chunks: Sequence[int]) -> set[int]:
        slots = self._link.session
        if slots is None:
            return set()  # the region ended with the connection
        if time.monotonic() < self._no_evictions_until:
            return slots.published_of(chunks)
        try:
            return slots.withdraw(chunks)
        except kvferry.KvferryError as error:
            self._link.failed(error, slots)
            if self._link.session is not slots:
                return set()
            self._no_evictions_until = time.monotonic() + STOPPED_PAUSE_S
            logger.warning("kvferry: chunks stay in the CPU tier, because they could not be withdrawn: %s", error)
            return slots.published_of(chunks)

    # --- the tier's thread

    def _run(self) -> None:
        loading: list[_Loading] = []
        while not self._stop.is_set():
            try:
                job = self._jobs.get(timeout=PULL_PAUSE_S if loading else IDLE_S)
            except queue.Empty:
                job = None
            if job is not None:
                self._start(job, loading)
            for one in [one for one in loading if self._ended(one)]:
                loading.remove(one)

    def _start(self, job: _Job, loading: list[_Loading]) -> None:
        slots = self._link.session
        if slots is None:
            self._finish(job, [])
            return
        try:
            if not job.load:
                slots.publish(job.chunks, job.keys)
                self._finish(job, job.keys)
                return
            slots.release(job.chunks)
            pull = slots.client.pull(
                self._namespace.name,
                job.keys,
                region=slots.region,
                slots=job.chunks,
                timeout=self._settings.load_timeout_s,
            )
            loading.append(_Loading(job, slots, pull))
        except kvferry.KvferryError as error:
            logger.warning("kvferry: a %s of %d chunks failed: %s", "load" if job.load else "store", len(job.keys), error)
            self._link.failed(error, slots)
            self._finish(job, [])

    def _ended(self, one: _Loading) -> bool:
        """Takes a load's outcomes in; True where it has ended and nothing writes to its chunks any more."""
        if not one.ended:
            if not one.pull.done():
                return False
            one.ended = True
            outcomes = {outcome.index: outcome for outcome in one.pull.outcomes()}
            failures: dict[str, int] = {}
            for index, (key, chunk) in enumerate(zip(one.job.keys, one.job.chunks)):
                outcome = outcomes.get(index)
                if outcome is not None and outcome.ok:
                    one.slots.landed([chunk])
                    one.came.append(key)
                    continue
                kind = outcome.kind.name.lower() if outcome is not None else "no_outcome"
                failures[kind] = failures.get(kind, 0) + 1
                if outcome is not None and not outcome.settled:
                    one.unsettled.add(chunk)
            if failures:
                logger.warning("kvferry: %d chunks did not come (%s)", sum(failures.values()), failures)
        if one.unsettled:
            one.unsettled = {chunk for chunk in one.unsettled if not self._settled(one.slots, chunk)}
        if one.unsettled:
            time.sleep(SETTLE_PAUSE_S)
            return False
        self._finish(one.job, one.came)
        return True

    def _settled(self, slots: Slots, chunk: int) -> bool:
        if self._link.session is not slots:
            return True  # with the agent went whatever wrote
        try:
            return slots.settled(chunk)
        except kvferry.KvferryError as error:
            self._link.failed(error, slots)
            return self._link.session is not slots

    def _finish(self, job: _Job, came: list[bytes]) -> None:
        nbytes = len(came) * self._namespace.layout.block_bytes
        result = compat.job_result(
            job.number, len(came) == len(job.keys), came if job.load else None, time.monotonic() - job.began, nbytes
        )
        there = set(came)
        self._results.put((result, [key for key in job.keys if key not in there] if job.load else []))
        with self._idle:
            self._open_jobs -= 1
            self._idle.notify_all()

    # --- helpers

    def _drain(self, bound_s: float | None) -> None:
        with self._idle:
            self._idle.wait_for(lambda: self._open_jobs == 0, bound_s)

    def _submit(self, metadata: Any, *, load: bool) -> None:
        chunks = [int(chunk) for chunk in compat.job_chunks(metadata)]
        job = _Job(metadata.job_id, [bytes(key) for key in metadata.keys], chunks, load)
        with self._idle:
            self._open_jobs += 1
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self._finish(job, [])

    def _begin(self, client: kvferry.Client) -> Slots:
        geometry = kvferry.Geometry.contiguous(self._chunks, self._namespace.layout.block_bytes, stride=self._stride)
        return Slots(client, client.register_buffer(self._namespace, self._view, geometry))

    def _ask(self, keys: Sequence[bytes]) -> kvferry.Call[list[kvferry.Place]] | None:
        slots = self._link.session
        if slots is None:
            return None
        try:
            return slots.client.background.lookup(self._namespace.name, keys, timeout=self._settings.lookup_timeout_s)
        except kvferry.KvferryError as error:
            self._link.failed(error, slots)
            return None

    def _lookup_failed(self, error: BaseException) -> None:
        if (slots := self._link.session) is not None:
            self._link.failed(error, slots)
