"""The connector's half in the scheduler's process: which blocks a request could have from elsewhere, and which of its own
are complete. Nothing here waits for anything."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import kvferry

from . import handoff
from .identity import Group, Identity
from .link import Link
from .lookups import Lookups, Question
from .metadata import GroupBlocks, LoadOrder, SaveOrder, StepOrders
from .settings import Settings

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

# Under vLLM's name: its handlers and levels hold for it.
logger = logging.getLogger("vllm.kvferry.scheduler")

# vLLM's null block: what stands where a sliding window has moved on.
NULL_BLOCK = 0
# Of one look-up (an agent's bound); longer prompts are asked for up to here.
MAX_HASHES = 65_536


@dataclass
class _Tracked:
    """A request between its first look-up and its end."""

    request: Request
    first_token: int = 0
    """Where external tokens begin: what the engine had itself, when it last asked."""
    blocks: list[list[int]] = field(default_factory=list)
    """Per group: its block ids, from the first token on."""
    published: list[int] | None = None
    """Per group: blocks up to here need not be published (again)."""
    loading: frozenset[int] = frozenset()
    failed: bool = False
    """A load failed: it is computed, and not asked for again."""


class SchedulerHalf:
    """Named after vLLM's calls. One thread: the scheduler's."""

    def __init__(
        self,
        identity: Identity,
        settings: Settings,
        link: Link[kvferry.Client],
        *,
        produces: bool,
        consumes: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._identity, self._settings, self._link = identity, settings, link
        self._produces, self._consumes, self._clock = produces, consumes, clock
        self._align = math.lcm(*(group.tokens for group in identity.groups))
        self._tracked: dict[str, _Tracked] = {}
        self._loads: list[LoadOrder] = []
        # Blocks that come within a step, for each step of whose loads the workers have said nothing yet; in order.
        self._unknown: deque[frozenset[int]] = deque()
        self._strangers: set[str] = set()
        self.lookups = Lookups(self._ask, self._lookup_failed)

    # --- before a request is admitted

    def matched_tokens(self, request: Request, computed: int) -> tuple[int | None, bool]:
        """How many tokens after the `computed` ones could be had, and whether they come between steps; (None, _): not known
        yet, ask again. Known by the look-up's deadline in every case."""
        tracked = self._track(request)
        tracked.first_token = computed
        if not self._consumes or tracked.failed or computed % self._align:
            return 0, False
        # The last token is computed here in any case: it gives the first one of the answer.
        end = (request.num_tokens - 1) // self._align * self._align
        if end - computed < max(self._align, self._settings.min_blocks * self._align):
            return 0, False
        timeout_s, expect = self._settings.lookup_timeout_s, 0
        if (told := handoff.announced(request.kv_transfer_params)) is not None and self._same(told):
            timeout_s, expect = self._settings.handoff_timeout_s, min(told.tokens, end) - computed
        questions = [self._question(group, request, computed, end) for group in self._identity.groups]
        tokens = self.lookups.poll(self._clock(), request.request_id, computed, questions, self._align, timeout_s, expect)
        if tokens is None:
            return None, False
        if tokens < self._settings.min_blocks * self._align:
            return 0, False
        return tokens, not self._within_step(request)

    def allocated(self, request: Request, blocks: KVCacheBlocks, external_tokens: int) -> None:
        """The request has blocks; `external_tokens` of them are to be loaded."""
        tracked = self._track(request)
        tracked.blocks = [list(ids) for ids in blocks.get_block_ids()]
        self.lookups.forget(request.request_id)
        if external_tokens <= 0:
            return
        first, end = tracked.first_token, tracked.first_token + external_tokens
        groups = tuple(
            found
            for group in self._identity.groups
            if (found := self._range(tracked, group, first // group.tokens, end // group.tokens)) is not None
        )
        tracked.loading = frozenset(block for group in groups for block in group.blocks)
        self._loads.append(LoadOrder(request.request_id, groups, self._within_step(request)))

    # --- each step

    def step(self, output: SchedulerOutput) -> StepOrders:
        """What the workers do with this step."""
        orders = StepOrders(loads=self._loads, idle=output.total_num_scheduled_tokens == 0)
        self._loads = []
        if within := [load for load in orders.loads if load.within_step]:
            self._unknown.append(frozenset(block for load in within for group in load.groups for block in group.blocks))
        for new in output.scheduled_new_reqs:
            if (tracked := self._tracked.get(new.req_id)) is not None:
                tracked.blocks = [list(ids) for ids in new.block_ids]
                self._scheduled(tracked, new.num_computed_tokens, output.num_scheduled_tokens[new.req_id], orders)
        cached = output.scheduled_cached_reqs
        for request, blocks, computed in zip(cached.req_ids, cached.new_block_ids, cached.num_computed_tokens):
            if (tracked := self._tracked.get(request)) is None:
                continue
            if request in cached.resumed_req_ids:
                tracked.blocks = [list(ids) for ids in blocks or ()]
            elif blocks is not None:
                for have, more in zip(tracked.blocks, blocks):
                    have.extend(more)
            self._scheduled(tracked, computed, output.num_scheduled_tokens[request], orders)
        return orders

    def _scheduled(self, tracked: _Tracked, computed: int, tokens: int, orders: StepOrders) -> None:
        starts = [computed // group.tokens for group in self._identity.groups]
        # Less than before: the request was preempted, or a load failed; those blocks are written anew.
        tracked.published = starts if tracked.published is None else [min(p) for p in zip(tracked.published, starts)]
        rests_on_unknown = self._rests_on_unknown(tracked, starts)
        saved = []
        for number, group in enumerate(self._identity.groups):
            mine = tracked.blocks[group.index]
            written = {block for block in mine[starts[number] :] if block != NULL_BLOCK}
            orders.writes.setdefault(group.index, set()).update(written)
            if rests_on_unknown:
                # Published with a later step, from where it stands now.
                continue
            full = min((computed + tokens) // group.tokens, len(tracked.request.block_hashes) // group.hashes_per_block)
            if self._settings.publish == "prompt":
                full = min(full, tracked.request.num_prompt_tokens // group.tokens)
            if (found := self._range(tracked, group, tracked.published[number], full)) is not None:
                saved.append(found)
            tracked.published[number] = max(full, tracked.published[number])
        if saved and self._produces:
            pin = handoff.wanted(tracked.request.kv_transfer_params)
            orders.saves.append(SaveOrder(tracked.request.request_id, tuple(saved), pin))

    def worker_said(
        self, recving: Iterable[str], failed: Iterable[str], invalid_blocks: Iterable[int], within_step: bool = False
    ) -> None:
        """Which loads have ended, and which blocks did not come; `within_step`: of a step with loads within it."""
        if within_step and self._unknown:
            # What did not come is not among a request's computed tokens any more: vLLM has seen to that by now.
            self._unknown.popleft()
        failed, invalid = set(failed), frozenset(invalid_blocks)
        for request in set(recving) | failed:
            if (tracked := self._tracked.get(request)) is not None:
                tracked.failed |= request in failed or bool(invalid & tracked.loading)
                tracked.loading = frozenset()

    # --- at the end

    def finished(self, request: Request) -> tuple[bool, dict[str, Any] | None]:
        """Never holds a request's blocks back: what is published is in the agent's pool, or in blocks that stay readable
        until the engine writes to them again."""
        self.lookups.forget(request.request_id)
        self._tracked.pop(request.request_id, None)
        if not self._produces or not handoff.wanted(request.kv_transfer_params):
            return False, None
        computed = min(request.num_computed_tokens, request.num_prompt_tokens)
        return False, handoff.Handoff(self._identity.base, computed // self._align * self._align).params()

    def reset(self) -> bool:
        """Weights have changed, say: what this engine's agent holds of the namespace is of no more use."""
        session = self._link.session
        if session is None:
            return False
        try:
            for group in self._identity.groups:
                for namespace in self._identity.all_ranks(group.index):
                    session.evict(namespace)
        except kvferry.NamespaceUnknownError:
            return True
        except kvferry.KvferryError as error:
            logger.error("kvferry: the cache was not reset: %s", error)
            self._link.failed(error, session)
            return False
        return True

    # --- helpers

    def _track(self, request: Request) -> _Tracked:
        return self._tracked.setdefault(request.request_id, _Tracked(request))

    def _within_step(self, request: Request) -> bool:
        """Whether its blocks come within the step that needs them. Not where it is prefilled for another engine: it may end with
        that step, and what is computed in it is published only when the blocks that it rests on are known to have come."""
        return self._settings.load == "sync" and not handoff.wanted(request.kv_transfer_params)

    def _rests_on_unknown(self, tracked: _Tracked, starts: list[int]) -> bool:
        """What is computed on blocks of which some may not come is nobody's: on any rank, since layers add up what ranks have."""
        if not self._unknown:
            return False
        # One group: several load between steps only.
        rests_on = tracked.blocks[self._identity.groups[0].index][: starts[0]]
        return any(not unknown.isdisjoint(rests_on) for unknown in self._unknown)

    def _same(self, told: handoff.Handoff) -> bool:
        if told.namespace == self._identity.base:
            return True
        if told.namespace not in self._strangers and len(self._strangers) < 64:
            self._strangers.add(told.namespace)
            logger.error(
                "kvferry: a request was prefilled under %r, but this engine's namespace is %r: the two differ in model, "
                "layout or hashes and share nothing; its prompts are computed here",
                told.namespace,
                self._identity.base,
            )
        return False

    def _hashes(self, group: Group, request: Request, first: int, end: int) -> tuple[bytes, ...]:
        step = group.hashes_per_block
        return tuple(bytes(h) for h in request.block_hashes[first * step + step - 1 : end * step : step])

    def _question(self, group: Group, request: Request, first: int, end: int) -> Question:
        hashes = self._hashes(group, request, first // group.tokens, end // group.tokens)
        return Question(tuple(self._identity.all_ranks(group.index)), hashes[:MAX_HASHES], group.tokens, group.window)

    def _range(self, tracked: _Tracked, group: Group, first: int, end: int) -> GroupBlocks | None:
        """Blocks first..end of the request that have memory; None where there are none."""
        mine = tracked.blocks[group.index]
        hashes = self._hashes(group, tracked.request, first, end)
        pairs = [(block, h) for block, h in zip(mine[first:end], hashes) if block != NULL_BLOCK]
        if not pairs:
            return None
        skipped = next(i for i, block in enumerate(mine[first:end]) if block != NULL_BLOCK)
        before = self._hashes(group, tracked.request, first + skipped - 1, first + skipped) if first + skipped else ()
        return GroupBlocks(group.index, tuple(b for b, _ in pairs), tuple(h for _, h in pairs), before[0] if before else None)

    def _ask(self, namespace: str, hashes: Sequence[bytes], prefix: bool) -> kvferry.Call[list[kvferry.Place]] | None:
        session = self._link.session
        if session is None:
            return None
        try:
            return session.background.lookup(namespace, hashes, prefix=prefix, timeout=self._settings.lookup_timeout_s)
        except kvferry.KvferryError as error:
            self._link.failed(error, session)
            return None

    def _lookup_failed(self, error: BaseException) -> None:
        if (session := self._link.session) is not None:
            self._link.failed(error, session)
