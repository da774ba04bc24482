"""What a real SGLang server is held to. Every scenario compares tokens with those of a server without HiCache."""

from __future__ import annotations

import contextlib
import pathlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import kvferry
import make_model
from agents import cluster, freeze, kill, sealed, wait_for
from servers import PAGE, TOKENS, Server, hicache, storage

MODELS = pathlib.Path(__file__).resolve().parent.parent / "common" / "models"

PROMPT = 600
ANSWER = 16
# Of the tiny models, all layers' keys and values.
TOKEN_BYTES = 4096


def prompt(seed: int, tokens: int = PROMPT) -> list[int]:
    numbers = random.Random(seed)
    return [numbers.randrange(3, 1000) for _ in range(tokens)]


def cached_tokens(tokens: int = PROMPT) -> int:
    """All full pages but that of the last token, which is computed in any case."""
    return (tokens - 1) // PAGE * PAGE


@dataclass
class Run:
    """What all scenarios of a model share."""

    models: pathlib.Path
    logs: pathlib.Path
    model: str = "llama"
    tp: int = 1
    expected: dict[int, list[int]] = field(default_factory=dict)
    servers: int = 0

    @contextlib.contextmanager
    def server(
        self, name: str, agent: kvferry.Agent | None, layout: str = "page_first", tokens: int = TOKENS, **settings: object
    ) -> Iterator[Server]:
        """One that stores at this agent; without an agent one without HiCache."""
        self.servers += 1
        folder = self.models / self.model
        make_model.main(str(MODELS / self.model), str(folder))
        options = [] if agent is None else hicache(storage(agent, **settings), layout)
        server = Server(name, str(folder), options, self.logs / f"{self.servers:02}-{name}.log", tokens, self.tp)
        try:
            yield server
        finally:
            server.close()

    def other(self, name: str, *, model: str = "llama", tp: int = 1) -> Run:
        """With another model or another number of ranks: its tokens are others."""
        logs = self.logs / name
        logs.mkdir(exist_ok=True)
        return Run(self.models, logs, model, tp)

    def reference(self, seeds: range) -> None:
        """The tokens that every scenario must arrive at."""
        with self.server("reference", None) as server:
            for seed in seeds:
                self.expected[seed] = server.generate(prompt(seed), ANSWER)["tokens"]

    def check(self, seed: int, answer: dict[str, Any], stored: int | None = None) -> str:
        """The same tokens, and so many of the prompt's from storage."""
        assert answer["finish"] == "length", answer
        assert answer["tokens"] == self.expected[seed], f"prompt {seed}: {answer['tokens']} is not {self.expected[seed]}"
        if stored is not None:
            assert answer["storage"] == stored, f"prompt {seed}: {answer} has not {stored} tokens from storage"
        return f"{answer['storage']} of {PROMPT} prompt tokens from storage"


def stored(agent: kvferry.Agent, pages: int) -> None:
    """Waits until so many pages have been backed up to that agent."""
    with agent.connect() as client:
        wait_for(f"{pages} pages are stored", lambda: sealed(client) >= pages)


def announced(agent: kvferry.Agent) -> None:
    """What it holds, others can find."""
    with agent.connect() as client:
        wait_for(
            "the coordinator knows it",
            lambda: all(link.connected and not link.unacknowledged_deltas for link in client.stats().coordinators),
        )


def share(run: Run, layout: str) -> str:
    """A computes and backs up; B, with the same weights, prefetches the prompt's pages straight into its host pool."""
    with cluster() as nodes:
        a, b = nodes.agent("a"), nodes.agent("b")
        with run.server("store", a, layout) as first, run.server("load", b, layout) as second:
            run.check(0, first.generate(prompt(0), ANSWER), 0)
            stored(a, cached_tokens() // PAGE)
            announced(a)
            words = run.check(0, second.generate(prompt(0), ANSWER), cached_tokens())
            run.check(1, second.generate(prompt(1), ANSWER), 0)
            with b.connect() as client:
                came = client.stats().blocks_pulled
                # The agent has forgotten where they landed: the pages are the server's.
                landed = [it for it in client.stats().regions if not it.pool]
                assert len(landed) == 1 and landed[0].sealed == landed[0].reserved == landed[0].quarantined == 0, landed
            assert came == cached_tokens() // PAGE, f"{came} pages pulled"
            # Back: what B has computed, A has.
            stored(b, cached_tokens() // PAGE)
            announced(b)
            run.check(1, first.generate(prompt(1), ANSWER), cached_tokens())
    return f"{words}, both ways; {came} pages pulled into the host pool"


def control(run: Run) -> str:
    """The control of all others: other bytes under the prompt's keys, and the tokens are others."""
    with cluster() as nodes:
        a, b = nodes.agent("a"), nodes.agent("b")
        with run.server("store", a) as first, run.server("load", b) as second:
            run.check(0, first.generate(prompt(0), ANSWER), 0)
            stored(a, cached_tokens() // PAGE)
            keys = page_keys(prompt(0))
            with a.connect() as client:
                (pool,) = (it for it in client.stats().regions if it.pool)
                client.evict(pool.namespace)
                client.put(pool.namespace, keys, bytes(PAGE * TOKEN_BYTES) * len(keys), wait_announced=10.0)
            answer = second.generate(prompt(0), ANSWER)
    assert answer["storage"] == cached_tokens(), answer
    assert answer["tokens"] != run.expected[0], "zeros were loaded, and the tokens are the same: nothing was loaded"
    return f"{answer['storage']} tokens of zeros loaded, and the tokens differ"


def page_keys(tokens: list[int]) -> list[bytes]:
    """Of the prompt's full pages, by SGLang's own function."""
    from sglang.srt.mem_cache.utils import get_storage_hash_str

    full = tokens[: len(tokens) // PAGE * PAGE]
    return [bytes.fromhex(key) for key in get_storage_hash_str(full, None, page_size=PAGE)]


def owner_killed(run: Run, layout: str) -> str:
    """The owner is killed while its pages are on their way: they are computed, and the tokens are the same."""
    with cluster() as nodes:
        a, b = nodes.agent("a", transport="tcp"), nodes.agent("b", transport="tcp")
        with run.server("store", a, layout) as first, run.server("load", b, layout) as second, b.connect() as client:
            run.check(0, first.generate(prompt(0), ANSWER), 0)
            run.check(1, first.generate(prompt(1), ANSWER), 0)
            stored(a, 2 * cached_tokens() // PAGE)
            announced(a)
            run.check(1, second.generate(prompt(1), ANSWER), cached_tokens())
            freeze(a)
            second.begin(prompt(0), ANSWER)
            wait_for("the reader's pull is under way", lambda: client.stats().pulls_in_flight > 0)
            kill(a)
            words = run.check(0, second.end(), 0)
            # The pages are the server's again, and it stores what it has computed.
            landed = [it for it in client.stats().regions if not it.pool]
            assert all(it.sealed == it.reserved == it.quarantined == 0 for it in landed), landed
            stored(b, cached_tokens() // PAGE)
            # The storing server goes on without its agent.
            run.check(2, first.generate(prompt(2), ANSWER), 0)
    return f"{words}; both servers go on"


def coordinator_gone(run: Run) -> str:
    """Without a coordinator nothing is found and all is computed; when one is back, the same pages are found: nobody has taken the
    outage for an answer."""
    with cluster() as nodes:
        a, b = nodes.agent("a"), nodes.agent("b")
        with run.server("store", a) as first, run.server("load", b, lookup_timeout_s=1.0) as second, b.connect() as client:
            run.check(0, first.generate(prompt(0), ANSWER), 0)
            run.check(1, first.generate(prompt(1), ANSWER), 0)
            stored(a, 2 * cached_tokens() // PAGE)
            announced(a)
            run.check(1, second.generate(prompt(1), ANSWER), cached_tokens())
            kill(nodes.coordinator)
            wait_for("the agent knows", lambda: not any(link.connected for link in client.stats().coordinators))
            run.check(0, second.generate(prompt(0), ANSWER), 0)
            stored(b, cached_tokens() // PAGE)
            nodes.restart_coordinator()
            announced(a)
            announced(b)
            # Neither its own cache nor its own agent's copies: from A, or from nowhere.
            (pool,) = (it for it in client.stats().regions if it.pool)
            second.forget()
            client.evict(pool.namespace)
            before = client.stats().blocks_pulled
            words = run.check(0, second.generate(prompt(0), ANSWER), cached_tokens())
            came = client.stats().blocks_pulled - before
            assert came == cached_tokens() // PAGE, f"{came} pages pulled"
    return f"0 tokens while it was gone; afterwards {words}"


def agent_restarted(run: Run) -> str:
    """The agent goes and comes back under the same socket: the server goes on, and shares again."""
    with cluster() as nodes:
        a, b = nodes.agent("a"), nodes.agent("b")
        with run.server("store", a) as first, run.server("load", b) as second:
            run.check(0, first.generate(prompt(0), ANSWER), 0)
            stored(a, cached_tokens() // PAGE)
            kill(a)
            run.check(1, first.generate(prompt(1), ANSWER), 0)
            again = nodes.agent("a", socket=a.socket)
            # It is looked for every few seconds, when there is something to store.
            for seed in (2, 3, 4, 5):
                run.check(seed, first.generate(prompt(seed), ANSWER))
                if "agent a is back" in first.log():
                    break
                wait_for("the time for the next attempt", _after(5.5))
            first.forget()
            with again.connect() as client:
                before = sealed(client)
            run.check(0, first.generate(prompt(0), ANSWER), 0)
            stored(again, before + cached_tokens() // PAGE)
            announced(again)
            words = run.check(0, second.generate(prompt(0), ANSWER), cached_tokens())
    return words


def _after(seconds: float) -> Callable[[], bool]:
    import time

    until = time.monotonic() + seconds
    return lambda: time.monotonic() >= until


def small_caches(run: Run) -> str:
    """Device cache, host pool and the agents' pools are all too small for the prompts, so pages are used again all the time: the
    right bytes or none."""
    with cluster() as nodes:
        small = {"pool_bytes": 40 * PAGE * TOKEN_BYTES}
        a, b = nodes.agent("a", **small), nodes.agent("b", **small)
        with run.server("one", a, tokens=1024, **small) as first, run.server("two", b, tokens=1024, **small) as second:
            came = 0
            for turn in range(3):
                for seed in range(6):
                    run.check(seed, first.generate(prompt(seed), ANSWER))
                    if turn == 0:
                        stored(a, min(2, seed + 1) * cached_tokens() // PAGE)
                    answer = second.generate(prompt((seed + turn) % 6), ANSWER)
                    run.check((seed + turn) % 6, answer)
                    came += answer["storage"]
            with a.connect() as client:
                evictions = sum(region.evictions for region in client.stats().regions)
    assert came and evictions, (came, evictions)
    return f"36 prompts, {came} tokens from storage, {evictions} pages evicted at one agent, all tokens right"


def tensor_parallel(run: Run) -> str:
    """Two ranks: each has a namespace and pages of its own, and a page is there when both have their part of it."""
    ranks = run.other("tp2", tp=2)
    ranks.reference(range(2))
    with cluster() as nodes:
        a, b = nodes.agent("a"), nodes.agent("b")
        with ranks.server("store", a) as first, ranks.server("load", b) as second, a.connect() as at_a:
            ranks.check(0, first.generate(prompt(0), ANSWER), 0)
            ranks.check(1, first.generate(prompt(1), ANSWER), 0)
            stored(a, 2 * 2 * cached_tokens() // PAGE)
            announced(a)
            names = sorted(it.namespace for it in at_a.stats().regions if it.pool)
            assert [name.split("/")[-2] for name in names] == ["tp0of2", "tp1of2"], names
            words = ranks.check(0, second.generate(prompt(0), ANSWER), cached_tokens())
            # What one rank lacks, both compute.
            half = cached_tokens() // 2 // PAGE * PAGE
            at_a.evict(names[1], page_keys(prompt(1))[half // PAGE :])
            ranks.check(1, second.generate(prompt(1), ANSWER), half)
    return f"{words} by two ranks; {half} where one rank lacked the rest"


def sliding_window(run: Run, layout: str = "page_first") -> str:
    """A model of sliding and full layers has two host pools (the v2 calls): B prefetches both. Then A is killed while the next
    prompt's pages are on their way."""
    hybrid = run.other("hybrid", model="mellum")
    hybrid.reference(range(3))
    with cluster() as nodes:
        a, b = nodes.agent("a", transport="tcp"), nodes.agent("b", transport="tcp")
        with (
            hybrid.server("store", a, layout) as first,
            hybrid.server("load", b, layout) as second,
            a.connect() as at_a,
            b.connect() as at_b,
        ):
            hybrid.check(0, first.generate(prompt(0), ANSWER), 0)
            hybrid.check(1, first.generate(prompt(1), ANSWER), 0)
            wait_for("both pools are stored", lambda: len([it for it in at_a.stats().regions if it.pool and it.sealed]) == 2)
            stored(a, 2 * cached_tokens() // PAGE + 2)
            announced(a)
            words = hybrid.check(0, second.generate(prompt(0), ANSWER), cached_tokens())
            came = at_b.stats().blocks_pulled
            assert came > cached_tokens() // PAGE, f"{came} pages pulled: none of the sliding layers'"
            freeze(a)
            second.begin(prompt(1), ANSWER)
            wait_for("the reader's pull is under way", lambda: at_b.stats().pulls_in_flight > 0)
            kill(a)
            hybrid.check(1, second.end(), 0)
            hybrid.check(2, second.generate(prompt(2), ANSWER), 0)
    return f"{words}; {came} pages of two pools pulled; with the owner killed all was computed"


Scenario = Callable[[Run], str]

SCENARIOS: dict[str, Scenario] = {
    "share-page-first": lambda run: share(run, "page_first"),
    "share-layer-first": lambda run: share(run, "layer_first"),
    "share-page-first-direct": lambda run: share(run, "page_first_direct"),
    "control": control,
    "owner-killed": lambda run: owner_killed(run, "page_first"),
    "owner-killed-layer-first": lambda run: owner_killed(run, "layer_first"),
    "coordinator-gone": coordinator_gone,
    "agent-restarted": agent_restarted,
    "small-caches": small_caches,
    "tp2": tensor_parallel,
    "sliding-window": sliding_window,
}
