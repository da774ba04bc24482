"""The connector's half in a worker's process: moves blocks between the engine's memory and its agent."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import kvferry

from .identity import Group, Identity
from .in_place import InPlaceMedium, whole_storage
from .link import GONE, Link, connect
from .medium import Load, Medium, Moved
from .metadata import LoadOrder, StepOrders
from .planes import LayoutError, Part, parts_of
from .pool import PoolMedium
from .settings import Settings
from .stats import KvferryStats

if TYPE_CHECKING:
    import torch

# Under vLLM's name: its handlers and levels hold for it.
logger = logging.getLogger("vllm.kvferry.worker")

# In a step without any computation: how long the engine's loop rests while blocks are on their way. As long as
# a block takes; the loop would spin otherwise, on a processor that the agent needs.
IDLE_WAIT_S = 0.001
# Nothing is published for so long after an agent has not answered: each attempt costs a step its timeout.
STOPPED_PAUSE_S = 10.0


@dataclass
class Session:
    """What this worker has with one connection to the agent: a medium per KV cache group."""

    client: kvferry.Client
    media: dict[int, Medium]


@dataclass
class _Loading:
    """One request's load."""

    loads: list[Load] = field(default_factory=list)
    bad: set[int] = field(default_factory=set)

    def done(self) -> bool:
        return all(load.done() for load in self.loads)


class WorkerHalf:
    """Named after vLLM's calls. One thread: the model runner's."""

    def __init__(self, identity: Identity, settings: Settings, tp_rank: int, pp_rank: int, blocks: int) -> None:
        self._identity, self._settings = identity, settings
        self._tp_rank, self._pp_rank, self._blocks = tp_rank, pp_rank, blocks
        self._parts: dict[int, list[Part]] = {}
        self._storage: torch.Tensor | None = None
        self._loading: dict[str, _Loading] = {}
        self._within_step: dict[str, _Loading] = {}
        self._ended: set[str] = set()
        self._failed: set[str] = set()
        self._bad: set[int] = set()
        self._no_publishing_until = 0.0
        self.stats = KvferryStats()
        self.link: Link[Session] = Link(self._connect, self._begin, settings.reconnect_s)

    # --- start

    def register(self, caches: Mapping[str, torch.Tensor], layers: Mapping[int, list[str]]) -> None:
        """Takes the KV cache tensors in: `layers` names those of each group. What cannot be shared ends the engine's start."""
        for group in self._identity.groups:
            mine = [(name, caches[name]) for name in layers[group.index] if name in caches]
            self._parts[group.index] = parts_of(mine, self._blocks)
        first = next(iter(caches.values()))
        self._storage = self._place(first)
        session = self.link.open()
        for group in self._identity.groups:
            spec = self._namespace(group)
            logger.info(
                "kvferry: agent %s, namespace %s, blocks of %d tokens in %d planes of %d bytes, %s",
                session.client.node,
                spec.name,
                spec.layout.tokens_per_block,
                spec.layout.planes,
                spec.layout.plane_bytes,
                "through the agent's pool" if self._storage is None else "in place",
            )

    def _place(self, first: torch.Tensor) -> torch.Tensor | None:
        """The storage to be registered; None: blocks go through the pool."""
        if self._settings.memory == "pool":
            return None
        try:
            if len(self._identity.groups) > 1:
                raise LayoutError("the blocks of several KV cache groups overlay each other")
            if first.device.type not in ("cpu", "cuda"):
                raise LayoutError(f"memory of the device {first.device.type!r} cannot be registered")
            (parts,) = self._parts.values()
            return whole_storage(parts, first)
        except LayoutError as error:
            if self._settings.memory == "in_place":
                raise
            logger.info("kvferry: the KV cache is not shared in place: %s", error)
            return None

    def _connect(self) -> kvferry.Client:
        return connect(self._settings.socket)

    def _begin(self, client: kvferry.Client) -> Session:
        try:
            return Session(client, {group.index: self._medium(client, group) for group in self._identity.groups})
        except (kvferry.RegionMemoryError, kvferry.GpuHandleError, kvferry.GpuUnavailableError) as error:
            if self._settings.memory == "in_place":
                raise
            logger.warning("kvferry: the KV cache cannot be shared in place, and goes through the agent's pool: %s", error)
            self._storage = None
            return Session(client, {group.index: self._medium(client, group) for group in self._identity.groups})

    def _medium(self, client: kvferry.Client, group: Group) -> Medium:
        spec, parts = self._namespace(group), self._parts[group.index]
        if self._storage is not None:
            return InPlaceMedium(client, spec, parts, self._storage, by_layer=self._settings.load == "sync")
        return PoolMedium(client, spec, parts, self._settings.pool_bytes)

    def _namespace(self, group: Group) -> kvferry.Namespace:
        parts = self._parts[group.index]
        layout = kvferry.Layout(
            str(self._identity.description["cache_dtype"])[:32] + "/" + str(self._identity.description["dtype"])[:16],
            group.tokens,
            len(parts),
            parts[0].strip.len,
        )
        checksum = kvferry.Checksum[self._settings.checksum.upper()]
        name = self._identity.namespace(group.index, self._tp_rank, self._pp_rank)
        return kvferry.Namespace(name, layout, self._identity.hash_len, checksum)

    # --- a step, in vLLM's order

    def before_forward(self, orders: StepOrders) -> None:
        """Before anything is written to the KV cache in this step."""
        if (session := self.link.session) is None:
            return
        for group, medium in session.media.items():
            try:
                medium.before_writes(orders.writes.get(group, set()))
            except kvferry.KvferryError as error:
                self._gone(error, session)

    def start_loads(self, orders: StepOrders) -> None:
        """Begins what was ordered; waits for nothing."""
        for order in orders.loads:
            into = self._within_step if order.within_step else self._loading
            into[order.request] = self._start(order)

    def wait_for_layer(self, layer: str) -> None:
        """Within a step: that layer's planes have come, or their blocks are known not to have."""
        for loading in self._within_step.values():
            for load in loading.loads:
                load.layer(layer)

    def publish(self, orders: StepOrders) -> None:
        """After the forward pass was launched."""
        self._end_within_step()
        for order in orders.saves:
            for blocks in order.groups:
                session = self.link.session
                if session is None or time.monotonic() < self._no_publishing_until:
                    self.stats.add("dropped_blocks", len(blocks.blocks))
                    continue
                pin_s = self._settings.pin_s if order.pin else None
                try:
                    self.stats.published(session.media[blocks.group].publish(blocks, pin_s=pin_s))
                except kvferry.KvferryError as error:
                    self.stats.add("dropped_blocks", len(blocks.blocks))
                    self._gone(error, session)
                    if isinstance(error, kvferry.DeadlineError):
                        self._no_publishing_until = time.monotonic() + STOPPED_PAUSE_S

    def ended(self, idle: bool) -> tuple[set[str], set[str]]:
        """(requests whose loads have ended, those of them of which blocks are missing)."""
        if idle and self._loading and not any(loading.done() for loading in self._loading.values()):
            next(iter(self._loading.values())).loads[0].wait(IDLE_WAIT_S)
        for request in [name for name, loading in self._loading.items() if loading.done()]:
            if self._end(self._loading.pop(request)):
                self._failed.add(request)
            self._ended.add(request)
        ended, self._ended = self._ended, set()
        failed, self._failed = self._failed, set()
        return ended, failed

    def bad_blocks(self) -> set[int]:
        """Block ids that hold nothing of use: they are computed. Asked after the forward pass; with speculation vLLM asks before
        `publish`, and the step's outcome is given with what is said here."""
        self._end_within_step()
        bad, self._bad = self._bad, set()
        return bad

    def take_stats(self) -> KvferryStats | None:
        if self.stats.is_empty():
            return None
        stats, self.stats = self.stats, KvferryStats()
        return stats

    def close(self) -> None:
        self.link.close()

    # --- helpers

    def _start(self, order: LoadOrder) -> _Loading:
        loading = _Loading()
        for blocks in order.groups:
            session = self.link.session
            if session is not None:
                try:
                    loading.loads.append(session.media[blocks.group].load(blocks, self._settings.load_timeout_s))
                    continue
                except kvferry.KvferryError as error:
                    self._gone(error, session)
                    kind = error.status
            else:
                kind = "no_agent"
            loading.bad.update(blocks.blocks)
            moved = Moved()
            moved.fail(kind, len(blocks.blocks))
            self.stats.loaded(moved)
        return loading

    def _end(self, loading: _Loading) -> bool:
        """Puts a load in place; True where blocks are missing."""
        for load in loading.loads:
            bad = load.finish()
            self.stats.loaded(load.moved)
            if bad:
                logger.warning(
                    "kvferry: %d blocks did not come and are computed (%s)",
                    len(bad),
                    ", ".join(f"{kind}: {count}" for kind, count in sorted(load.moved.failures.items())),
                )
            loading.bad |= bad
        self._bad |= loading.bad
        return bool(loading.bad)

    def _end_within_step(self) -> None:
        for loading in self._within_step.values():
            for load in loading.loads:
                load.wait(self._settings.load_timeout_s + 2.0)
            self._end(loading)
            self.stats.loaded_within_step()
        self._within_step.clear()

    def _gone(self, error: kvferry.KvferryError, session: Session) -> None:
        if isinstance(error, GONE):
            self.link.failed(error, session)
        else:
            logger.warning("kvferry: %s", error)
