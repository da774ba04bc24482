"""What a real vLLM engine is held to. Every scenario compares tokens with those of an engine without kvferry."""

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
from processes import Engine

MODELS = pathlib.Path(__file__).resolve().parent.parent / "common" / "models"

BLOCK = 32
# 64 MiB of KV cache: more than 32 MiB, so that its pages can be shared in place.
BLOCKS = 512
PROMPT = 600
ANSWER = 16


def prompt(seed: int, tokens: int = PROMPT) -> list[int]:
    numbers = random.Random(seed)
    return [numbers.randrange(3, 1000) for _ in range(tokens)]


def cached_tokens(tokens: int) -> int:
    """All full blocks but that of the last token, which is computed in any case."""
    return (tokens - 1) // BLOCK * BLOCK


def connector(agent: kvferry.Agent, role: str = "kv_both", **settings: object) -> dict[str, Any]:
    return {
        "kv_connector": "KvferryConnector",
        "kv_connector_module_path": "kvferry.vllm",
        "kv_role": role,
        "kv_load_failure_policy": "recompute",
        # A shared machine of two cores answers late.
        "kv_connector_extra_config": {"socket": agent.socket, "lookup_timeout_s": 10.0, **settings},
    }


def tiering(agent: kvferry.Agent, cpu_bytes: int = 64 << 20, **settings: object) -> dict[str, Any]:
    """vLLM's tiered offloading over the CPU worker of cpu_worker.py; all else is vLLM's own."""
    tier = {"type": "KvferryTier", "module_path": "kvferry.vllm", "socket": agent.socket, "lookup_timeout_s": 10.0}
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": "CpuTieringSpec",
            "spec_module_path": "cpu_worker",
            "cpu_bytes_to_use": cpu_bytes,
            "eviction_policy": "KvferryPolicy",
            "cache_policy_module_path": "kvferry.vllm",
            "secondary_tiers": [{**tier, **settings}],
        },
    }


@dataclass
class Run:
    """What all scenarios of one vLLM release share."""

    models: pathlib.Path
    logs: pathlib.Path
    path: str | None
    """Put before everything else in PYTHONPATH: another release than the installed one."""
    model: str = "llama"
    tp: int = 1
    pp: int = 1
    expected: dict[int, list[int]] = field(default_factory=dict)
    version: str = ""
    engines: int = 0

    @contextlib.contextmanager
    def engine(self, name: str, transfer: dict[str, Any] | None, blocks: int = BLOCKS) -> Iterator[Engine]:
        self.engines += 1
        folder = self.models / self.model
        make_model.main(str(MODELS / self.model), str(folder))
        options = {"model": str(folder), "transfer": transfer, "block_size": BLOCK, "blocks": blocks, "tp": self.tp, "pp": self.pp}
        engine = Engine(name, options, self.logs / f"{self.engines:02}-{name}.log", self.path)
        try:
            yield engine
        finally:
            engine.close()

    def other(self, name: str, *, model: str = "llama", tp: int = 1, pp: int = 1) -> Run:
        """The same release with another model or another number of ranks: its tokens are others."""
        logs = self.logs / name
        logs.mkdir(exist_ok=True)
        return Run(self.models, logs, self.path, model, tp, pp)

    def reference(self, seeds: range) -> None:
        """The tokens that every scenario must arrive at."""
        with self.engine("reference", None) as engine:
            self.version = engine.version
            for seed in seeds:
                self.expected[seed] = engine.generate(prompt(seed), ANSWER)["tokens"]

    def check(self, seed: int, answer: dict[str, Any], cached: int | None = None) -> str:
        """The same tokens, and so many of the prompt's not computed."""
        assert answer["finish"] == "length", answer
        assert answer["tokens"] == self.expected[seed][: len(answer["tokens"])], (
            f"prompt {seed}: {answer['tokens']} is not {self.expected[seed]}"
        )
        if cached is not None:
            assert answer["cached"] == cached, f"prompt {seed}: {answer['cached']} tokens cached, not {cached}"
        return f"{answer['cached']} of {PROMPT} prompt tokens cached"


def prefix_sharing(run: Run, memory: str, load: str = "async", transport: str = "auto") -> str:
    """A prefills and publishes; B, with the same weights, gets the prompt's blocks."""
    with cluster() as nodes:
        a, b = nodes.agent("a", transport=transport), nodes.agent("b", transport=transport)
        with (
            run.engine("publisher", connector(a, memory=memory)) as first,
            run.engine("reader", connector(b, memory=memory, load=load)) as second,
        ):
            run.check(0, first.generate(prompt(0), ANSWER), 0)
            words = run.check(0, second.generate(prompt(0), ANSWER), cached_tokens(PROMPT))
            # Its own cache by now: and what it does not have, it computes.
            run.check(0, second.generate(prompt(0), ANSWER), cached_tokens(PROMPT))
            run.check(1, second.generate(prompt(1), ANSWER), 0)
            metrics = second.ask("metrics")["metrics"]
            way = "in place" if ", in place" in second.log() else "through the pool"
        assert metrics.get("vllm:kvferry_load_blocks", 0) == cached_tokens(PROMPT) / BLOCK, metrics
        with b.connect() as client:
            came = client.stats().blocks_pulled
        assert came == cached_tokens(PROMPT) / BLOCK, f"{came} blocks pulled"
    return f"{words}; {came} blocks pulled, {way}"


def mixed_media(run: Run) -> str:
    """One publishes in place, the other pulls through its pool; and back."""
    with cluster() as nodes:
        a, b = nodes.agent("a"), nodes.agent("b")
        with (
            run.engine("in-place", connector(a, memory="in_place")) as first,
            run.engine("pool", connector(b, memory="pool")) as second,
        ):
            run.check(0, first.generate(prompt(0), ANSWER), 0)
            words = run.check(0, second.generate(prompt(0), ANSWER), cached_tokens(PROMPT))
            run.check(1, second.generate(prompt(1), ANSWER), 0)
            run.check(1, first.generate(prompt(1), ANSWER), cached_tokens(PROMPT))
    return f"{words}, both ways"


def loaded_bytes_are_used(run: Run) -> str:
    """The control of all others: other bytes under the prompt's hashes, and the tokens are others."""
    with cluster() as nodes:
        a, b = nodes.agent("a"), nodes.agent("b")
        with (
            run.engine("publisher", connector(a, memory="pool")) as first,
            run.engine("reader", connector(b, memory="pool")) as second,
        ):
            run.check(0, first.generate(prompt(0), ANSWER), 0)
            hashes = [bytes.fromhex(text) for text in first.ask("hashes", prompt=prompt(0))["hashes"]]
            with a.connect() as client:
                (region,) = client.stats().regions
                client.evict(region.namespace)
                block = BLOCK * 4096
                client.put(region.namespace, hashes, bytes(block) * len(hashes), wait_announced=10.0)
            answer = second.generate(prompt(0), ANSWER)
    assert answer["cached"] == cached_tokens(PROMPT), answer
    assert answer["tokens"] != run.expected[0], "zeros were loaded, and the tokens are the same: nothing was loaded"
    return f"{answer['cached']} tokens of zeros loaded, and the tokens differ"


def owner_killed(run: Run, memory: str, ranks: int = 1) -> str:
    """The owner is killed while its blocks are on their way: they are computed, and the tokens are the same."""
    with cluster() as nodes:
        a, b = nodes.agent("a", transport="tcp"), nodes.agent("b", transport="tcp")
        with (
            run.engine("publisher", connector(a, memory=memory)) as first,
            run.engine("reader", connector(b, memory=memory, load_timeout_s=30.0)) as second,
        ):
            run.check(0, first.generate(prompt(0), ANSWER), 0)
            run.check(1, first.generate(prompt(1), ANSWER), 0)
            run.check(1, second.generate(prompt(1), ANSWER), cached_tokens(PROMPT))
            with b.connect() as client:
                freeze(a)
                second.begin("generate", prompt=prompt(0), max_tokens=ANSWER, params=None)
                wait_for("the reader's pull is under way", lambda: client.stats().pulls_in_flight > 0)
                kill(a)
            words = run.check(0, second.end(), 0)
            metrics = second.ask("metrics")["metrics"]
            failed = metrics.get("vllm:kvferry_load_failed_blocks", 0)
            assert failed == ranks * cached_tokens(PROMPT) / BLOCK, metrics
            # The publisher's engine goes on without its agent.
            run.check(2, first.generate(prompt(2), ANSWER), 0)
    return f"{words}; {failed:g} blocks failed and were computed"


def part_of_the_owners_killed(run: Run, memory: str) -> str:
    """The first half comes, the owner of the second is killed: what came is used, the rest computed."""
    half = PROMPT // 2 // BLOCK * BLOCK
    with cluster() as nodes:
        a, b, c = (nodes.agent(name, transport="tcp") for name in "abc")
        with run.engine("publisher", connector(a, memory="pool")) as first:
            run.check(0, first.generate(prompt(0), ANSWER), 0)
            hashes = [bytes.fromhex(text) for text in first.ask("hashes", prompt=prompt(0))["hashes"]]
        # The first half lies on c alone, the second on a alone.
        with a.connect() as at_a, c.connect() as at_c:
            (region,) = at_a.stats().regions
            described = at_a.region(region.region)
            layout = kvferry.Layout("auto/float32", BLOCK, *_planes(described))
            at_c.register_pool(kvferry.Namespace(region.namespace, layout, len(hashes[0])), 64 << 20)
            pulled = at_c.pull(region.namespace, hashes[: half // BLOCK], timeout=30.0).result()
            assert pulled.ok, pulled.failed
            if pulled.pin is not None:
                pulled.pin.release()
            at_a.evict(region.namespace, hashes[: half // BLOCK])
        with (
            run.engine("reader", connector(b, memory=memory, load_timeout_s=30.0)) as second,
            b.connect() as client,
        ):
            freeze(a)
            second.begin("generate", prompt=prompt(0), max_tokens=ANSWER, params=None)
            wait_for("the first half has come", lambda: client.stats().blocks_pulled >= half // BLOCK)
            kill(a)
            words = run.check(0, second.end(), half)
    return words


def within_step_owner_killed(run: Run, memory: str) -> str:
    """The first half of a prompt is to come within the step that computes the rest on it, and its owner is killed meanwhile: all is
    computed anew, and what is published of it, which a third engine loads, is right."""
    half = PROMPT // 2 // BLOCK * BLOCK
    with cluster() as nodes:
        a, b, c = (nodes.agent(name, transport="tcp") for name in "abc")
        with run.engine("publisher", connector(a, memory="pool")) as first, a.connect() as at_a:
            run.check(0, first.generate(prompt(0), ANSWER), 0)
            hashes = [bytes.fromhex(text) for text in first.ask("hashes", prompt=prompt(0))["hashes"]]
            (region,) = at_a.stats().regions
            at_a.evict(region.namespace, hashes[half // BLOCK :])
        with (
            run.engine("reader", connector(b, memory=memory, load="sync", load_timeout_s=30.0)) as second,
            b.connect() as at_b,
        ):
            # Its first step takes its time, in which an owner that says nothing would be missed.
            run.check(1, second.generate(prompt(1), ANSWER), 0)
            freeze(a)
            second.begin("generate", prompt=prompt(0), max_tokens=ANSWER, params=None)
            wait_for("the pull is under way", lambda: at_b.stats().pulls_in_flight > 0)
            kill(a)
            run.check(0, second.end())
            failed = second.ask("metrics")["metrics"].get("vllm:kvferry_load_failed_blocks", 0)
            assert failed == half // BLOCK, failed
            with run.engine("third", connector(c, memory=memory)) as third:
                words = run.check(0, third.generate(prompt(0), ANSWER), cached_tokens(PROMPT))
    return f"{failed:g} blocks failed and were computed; then, of what was published, {words}"


def _planes(region: kvferry.Region) -> tuple[int, int]:
    """(planes, bytes of each) of the model's blocks: four layers, one piece each."""
    return 4, region.planes[0].len // 4


def disaggregated(run: Run, memory: str) -> str:
    """P prefills, D decodes with what P has published; what a router passes on is `kv_transfer_params`. Then P's agent is
    killed while the next prompt's blocks are on their way."""
    remotely = {"do_remote_decode": True, "do_remote_prefill": False}
    with cluster() as nodes:
        p, d = nodes.agent("p", transport="tcp"), nodes.agent("d", transport="tcp")
        with (
            run.engine("prefill", connector(p, "kv_producer", memory=memory)) as prefill,
            run.engine("decode", connector(d, "kv_consumer", memory=memory, load_timeout_s=30.0)) as decode,
            d.connect() as client,
        ):
            first = prefill.generate(prompt(0), 1, remotely)
            run.check(0, first, 0)
            params = first["params"]
            assert params["kvferry"]["tokens"] == PROMPT // BLOCK * BLOCK, params
            # vLLM tells the user what was cached where the prompt was prefilled; what was loaded is in the metrics.
            run.check(0, decode.generate(prompt(0), ANSWER, params), 0)
            run.check(1, decode.generate(prompt(1), ANSWER), 0)
            metrics = decode.ask("metrics")["metrics"]
            loaded = metrics.get("vllm:kvferry_load_blocks", 0)
            assert loaded == cached_tokens(PROMPT) / BLOCK, metrics
            # A consumer publishes nothing of its own.
            assert "vllm:kvferry_published_blocks" not in metrics
            params = prefill.generate(prompt(2), 1, remotely)["params"]
            freeze(p)
            decode.begin("generate", prompt=prompt(2), max_tokens=ANSWER, params=params)
            wait_for("the pull is under way", lambda: client.stats().pulls_in_flight > 0)
            kill(p)
            run.check(2, decode.end(), 0)
            metrics = decode.ask("metrics")["metrics"]
            failed = metrics.get("vllm:kvferry_load_failed_blocks", 0)
            assert failed == cached_tokens(PROMPT) / BLOCK, metrics
    return f"{loaded:g} blocks loaded; with the owner killed {failed:g} failed and were computed"


def agent_restarted(run: Run) -> str:
    """The agent goes and comes back under the same socket: the engine goes on, and shares again."""
    with cluster() as nodes:
        a, b = nodes.agent("a"), nodes.agent("b")
        with (
            run.engine("publisher", connector(a, memory="pool", reconnect_s=0.1)) as first,
            run.engine("reader", connector(b, memory="pool")) as second,
        ):
            run.check(0, first.generate(prompt(0), ANSWER), 0)
            kill(a)
            run.check(1, first.generate(prompt(1), ANSWER), 0)
            again = nodes.agent("a", socket=a.socket)
            wait_for("the engine is back at its agent", lambda: "connected to agent a again" in first.log())
            run.check(2, first.generate(prompt(2), ANSWER), 0)
            words = run.check(2, second.generate(prompt(2), ANSWER), cached_tokens(PROMPT))
            del again
    return words


def small_cache_in_place(run: Run) -> str:
    """The publisher's cache is far too small for all prompts, so blocks are overwritten while others hold them for published:
    readers get the right bytes or none."""
    with cluster() as nodes:
        a, b = nodes.agent("a"), nodes.agent("b")
        with (
            run.engine("publisher", connector(a, memory="in_place"), blocks=300) as first,
            run.engine("reader", connector(b, memory="in_place"), blocks=300) as second,
        ):
            cached = 0
            for turn in range(3):
                for seed in range(6):
                    run.check(seed, first.generate(prompt(seed), ANSWER))
                    answer = second.generate(prompt((seed + turn) % 6), ANSWER)
                    run.check((seed + turn) % 6, answer)
                    cached += answer["cached"]
    return f"18 prompts, {cached} tokens cached, all tokens right"


def tier(run: Run) -> str:
    """A offloads to its CPU region, B loads from there."""
    with cluster() as nodes:
        a, b = nodes.agent("a"), nodes.agent("b")
        with (
            run.engine("offloader", tiering(a)) as first,
            run.engine("reader", tiering(b)) as second,
        ):
            run.check(0, first.generate(prompt(0), ANSWER), 0)
            run.check(1, first.generate(prompt(1), ANSWER), 0)
            with a.connect() as client:
                wait_for("chunks are published", lambda: sealed(client) >= cached_tokens(PROMPT) // BLOCK)
            words = run.check(0, second.generate(prompt(0), ANSWER), cached_tokens(PROMPT))
            run.check(2, second.generate(prompt(2), ANSWER), 0)
    return words


def tier_evicts(run: Run) -> str:
    """The CPU region is too small: chunks are withdrawn before they are overwritten, and nobody gets wrong bytes."""
    with cluster() as nodes:
        a, b = nodes.agent("a"), nodes.agent("b")
        # Room for two prompts and a bit.
        small = 44 * BLOCK * 4096
        with (
            run.engine("offloader", tiering(a, small)) as first,
            run.engine("reader", tiering(b, small)) as second,
        ):
            cached = 0
            for turn in range(2):
                for seed in range(6):
                    run.check(seed, first.generate(prompt(seed), ANSWER))
                    answer = second.generate(prompt((seed + turn) % 6), ANSWER)
                    run.check((seed + turn) % 6, answer)
                    cached += answer["cached"]
                first.ask("reset")
                second.ask("reset")
            with a.connect() as client:
                published = sealed(client)
            assert 0 < published <= 44, published
    return f"12 prompts, {cached} tokens cached, all tokens right; {published} chunks published at the end"


def tier_owner_killed(run: Run) -> str:
    """The owner of the chunks is killed while they are on their way."""
    with cluster() as nodes:
        a, b = nodes.agent("a", transport="tcp"), nodes.agent("b", transport="tcp")
        with (
            run.engine("offloader", tiering(a)) as first,
            run.engine("reader", tiering(b, load_timeout_s=30.0)) as second,
        ):
            run.check(0, first.generate(prompt(0), ANSWER), 0)
            run.check(1, first.generate(prompt(1), ANSWER), 0)
            with a.connect() as client:
                wait_for("chunks are published", lambda: sealed(client) >= cached_tokens(PROMPT) // BLOCK)
            with b.connect() as client:
                freeze(a)
                second.begin("generate", prompt=prompt(0), max_tokens=ANSWER, params=None)
                wait_for("the load is under way", lambda: client.stats().pulls_in_flight > 0)
                kill(a)
            words = run.check(0, second.end(), 0)
            # The offloader goes on without its agent.
            run.check(2, first.generate(prompt(2), ANSWER), 0)
    return words


def two_ranks(run: Run, memory: str, kind: str) -> str:
    """Two ranks: each has a namespace and planes of its own, and a block is there when both have their part of it. With "tp" every
    rank has some heads of each layer, with "pp" some layers; then the engine schedules a step before the last one has ended."""
    ranks = run.other(f"{kind}2-{memory}", **{kind: 2})
    ranks.reference(range(3))
    suffixes = {
        "tp": ["tp0of2-pp0of1-g0", "tp1of2-pp0of1-g0"],
        "pp": ["tp0of1-pp0of2-g0", "tp0of1-pp1of2-g0"],
    }[kind]
    wanted = cached_tokens(PROMPT)
    with cluster() as nodes:
        a, b = nodes.agent("a"), nodes.agent("b")
        with (
            ranks.engine("publisher", connector(a, memory=memory)) as first,
            ranks.engine("reader", connector(b, memory=memory)) as second,
            a.connect() as at_a,
            b.connect() as at_b,
        ):
            ranks.check(0, first.generate(prompt(0), ANSWER), 0)
            names = sorted(region.namespace for region in at_a.stats().regions)
            assert [name.rsplit("/", 1)[1] for name in names] == suffixes, names
            words = ranks.check(0, second.generate(prompt(0), ANSWER), wanted)
            came = at_b.stats().blocks_pulled
            assert came == 2 * wanted // BLOCK, f"{came} blocks pulled"
            # What one rank alone lacks, all compute: the second half of its blocks, then all of another prompt's.
            half = PROMPT // 2 // BLOCK * BLOCK
            ranks.check(1, first.generate(prompt(1), ANSWER), 0)
            ranks.check(2, first.generate(prompt(2), ANSWER), 0)
            for seed, kept in ((1, half), (2, 0)):
                hashes = [bytes.fromhex(text) for text in first.ask("hashes", prompt=prompt(seed))["hashes"]]
                at_a.evict(names[1], hashes[kept // BLOCK :])
                ranks.check(seed, second.generate(prompt(seed), ANSWER), kept)
        # One rank of its own shares with none of two.
        with run.engine("one-rank", connector(b, memory=memory)) as third:
            run.check(0, third.generate(prompt(0), ANSWER), 0)
    return f"{words}; {came} blocks pulled by two ranks; {half} where one rank lacked the rest"


def two_ranks_owner_killed(run: Run, memory: str, kind: str) -> str:
    """The owner of both ranks' blocks is killed while they are on their way."""
    ranks = run.other(f"{kind}2-killed-{memory}", **{kind: 2})
    ranks.reference(range(3))
    return owner_killed(ranks, memory, ranks=2)


def sliding_window(run: Run, load_timeout_s: float = 30.0) -> str:
    """A model of two KV cache groups, sliding and full layers: A publishes, B gets both groups' blocks. Then A is killed while
    the next prompt's blocks are on their way, and C gets the first prompt's from B, which has no more of sliding layers than
    the window reached."""
    hybrid = run.other("hybrid", model="gemma")
    hybrid.reference(range(3))
    with cluster() as nodes:
        a, b = nodes.agent("a", transport="tcp"), nodes.agent("b", transport="tcp")
        with (
            hybrid.engine("publisher", connector(a)) as first,
            hybrid.engine("reader", connector(b, load_timeout_s=load_timeout_s)) as second,
            a.connect() as at_a,
            b.connect() as at_b,
        ):
            hybrid.check(0, first.generate(prompt(0), ANSWER), 0)
            hybrid.check(1, first.generate(prompt(1), ANSWER), 0)
            groups = sorted(region.namespace.rsplit("-", 1)[1] for region in at_a.stats().regions)
            assert groups == ["g0", "g1"], groups
            words = hybrid.check(0, second.generate(prompt(0), ANSWER), cached_tokens(PROMPT))
            came = at_b.stats().blocks_pulled
            # Of the sliding layers only what the window still reaches.
            assert cached_tokens(PROMPT) // BLOCK < came < 2 * cached_tokens(PROMPT) // BLOCK, came
            freeze(a)
            second.begin("generate", prompt=prompt(1), max_tokens=ANSWER, params=None)
            wait_for("the reader's pull is under way", lambda: at_b.stats().pulls_in_flight > 0)
            kill(a)
            hybrid.check(1, second.end(), 0)
            hybrid.check(2, second.generate(prompt(2), ANSWER), 0)
            c = nodes.agent("c", transport="tcp")
            with hybrid.engine("third", connector(c)) as third:
                hybrid.check(0, third.generate(prompt(0), ANSWER), cached_tokens(PROMPT))
    return f"{words}; {came} blocks of two groups pulled; with the owner killed all was computed; the first reader's were pulled on"


def sliding_window_control(run: Run) -> str:
    """Zeros under the hashes of one of the two groups: the tokens are others, whichever it is."""
    hybrid = run.other("hybrid-control", model="gemma")
    hybrid.reference(range(1))
    for group in ("g0", "g1"):
        with cluster() as nodes:
            a, b = nodes.agent("a"), nodes.agent("b")
            with (
                hybrid.engine("publisher", connector(a)) as first,
                hybrid.engine("reader", connector(b)) as second,
                a.connect() as at_a,
            ):
                hybrid.check(0, first.generate(prompt(0), ANSWER), 0)
                hashes = [bytes.fromhex(text) for text in first.ask("hashes", prompt=prompt(0))["hashes"]]
                (region,) = (it for it in at_a.stats().regions if it.namespace.endswith(f"-{group}"))
                block = at_a.region(region.region).planes[0].len
                at_a.evict(region.namespace)
                at_a.put(region.namespace, hashes, bytes(block) * len(hashes), wait_announced=10.0)
                answer = second.generate(prompt(0), ANSWER)
                assert answer["cached"] == cached_tokens(PROMPT), answer
                assert answer["tokens"] != hybrid.expected[0], f"zeros were loaded into {group}, and the tokens are the same"
    return f"{answer['cached']} tokens of zeros loaded into either group, and the tokens differ"


Scenario = Callable[[Run], str]

# The first few are run with every release.
SCENARIOS: dict[str, Scenario] = {
    "share-pool": lambda run: prefix_sharing(run, "pool"),
    "share-auto": lambda run: prefix_sharing(run, "auto"),
    "share-in-place": lambda run: prefix_sharing(run, "in_place"),
    "owner-killed-pool": lambda run: owner_killed(run, "pool"),
    "tier": tier,
    "control": loaded_bytes_are_used,
    "owner-killed-in-place": lambda run: owner_killed(run, "in_place"),
    "disaggregated-pool": lambda run: disaggregated(run, "pool"),
    "disaggregated-in-place": lambda run: disaggregated(run, "in_place"),
    "tier-evicts": tier_evicts,
    "tier-owner-killed": tier_owner_killed,
    "small-cache-in-place": small_cache_in_place,
    "half-killed": lambda run: part_of_the_owners_killed(run, "pool"),
    "half-killed-in-place": lambda run: part_of_the_owners_killed(run, "in_place"),
    "share-within-step": lambda run: prefix_sharing(run, "pool", load="sync"),
    "share-within-step-in-place": lambda run: prefix_sharing(run, "in_place", load="sync"),
    "within-step-owner-killed": lambda run: within_step_owner_killed(run, "pool"),
    "within-step-owner-killed-in-place": lambda run: within_step_owner_killed(run, "in_place"),
    "mixed-media": mixed_media,
    "agent-restarted": agent_restarted,
    "tp2-pool": lambda run: two_ranks(run, "pool", "tp"),
    "tp2-in-place": lambda run: two_ranks(run, "in_place", "tp"),
    "tp2-owner-killed-pool": lambda run: two_ranks_owner_killed(run, "pool", "tp"),
    "pp2-pool": lambda run: two_ranks(run, "pool", "pp"),
    "pp2-in-place": lambda run: two_ranks(run, "in_place", "pp"),
    "pp2-owner-killed-in-place": lambda run: two_ranks_owner_killed(run, "in_place", "pp"),
    "sliding-window": sliding_window,
    "sliding-window-control": sliding_window_control,
}
# 0.28 allocates each layer by itself, which cannot be shared in place: there "auto" is the pool.
EVERY_RELEASE = ("share-pool", "share-auto", "owner-killed-pool", "tier")
