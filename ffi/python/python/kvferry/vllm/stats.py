"""The connector's numbers, through vLLM's own hooks: its log line, and Prometheus.

Counted where it happens, in the scheduler's and in each worker's half; taken and set to nothing each step.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

from .lookups import Counts
from .medium import Moved

# Name in the payload: (name in Prometheus without "vllm:kvferry_", its help).
COUNTERS = {
    "lookups": ("lookups", "Requests that were looked up."),
    "lookup_hits": ("lookup_hits", "Look-ups that found at least one block."),
    "lookups_late": ("lookups_late", "Look-ups that had no answer by their deadline: misses."),
    "lookup_errors": ("lookup_errors", "Look-ups that failed, by an outage say: misses."),
    "loads": ("loads", "Loads that have ended."),
    "load_blocks": ("load_blocks", "Blocks that came."),
    "load_bytes": ("load_bytes", "Bytes that came."),
    "load_seconds": ("load_seconds", "Seconds from the begin of a load to its end."),
    "failed_blocks": ("load_failed_blocks", "Blocks that did not come and were computed."),
    "saved_blocks": ("published_blocks", "Blocks published."),
    "saved_bytes": ("published_bytes", "Bytes published."),
    "save_seconds": ("publish_seconds", "Seconds spent publishing."),
    "dropped_blocks": ("publish_dropped_blocks", "Blocks not published: no room, or no agent."),
}
# Of a step's numbers: requests that were loaded within it. Shown nowhere.
WITHIN_STEP = "within_step"


def of_within_step(stats: KVConnectorStats | None) -> bool:
    """Whether a step's numbers are of one with loads within it. This is how the scheduler's half hears that the workers have said
    what came of those: numbers travel with every step's outcome, failures only where there are some."""
    if stats is not None and not isinstance(stats, KvferryStats):
        # Of several connectors, by their classes' names.
        stats = next((its for its in stats.data.values() if isinstance(its, KvferryStats)), None)
    return stats is not None and bool(stats.data.get(WITHIN_STEP))


class KvferryStats(KVConnectorStats):
    """`data[name]` is a number for each of COUNTERS, and `data["failures"]` blocks by kind of outcome."""

    data: dict[str, Any]

    def reset(self) -> None:
        self.data = {}

    def is_empty(self) -> bool:
        return not self.data

    def aggregate(self, other: KVConnectorStats) -> KvferryStats:
        for name, value in other.data.items():
            if name == "failures":
                kinds = self.data.setdefault("failures", {})
                for kind, blocks in value.items():
                    kinds[kind] = kinds.get(kind, 0) + blocks
            else:
                self.data[name] = self.data.get(name, 0) + value
        return self

    def reduce(self) -> dict[str, int | float]:
        """For vLLM's log line."""
        words: dict[str, int | float] = {name: self.data[name] for name in COUNTERS if self.data.get(name)}
        for kind, blocks in self.data.get("failures", {}).items():
            words[f"failed_{kind}"] = blocks
        for done, seconds in (("load_bytes", "load_seconds"), ("saved_bytes", "save_seconds")):
            if words.get(done) and words.get(seconds):
                words[f"{done}_per_second"] = round(words[done] / words[seconds])
        return words

    # --- counting

    def add(self, name: str, value: float = 1) -> None:
        if value:
            self.data[name] = self.data.get(name, 0) + value

    def loaded(self, moved: Moved) -> None:
        self.add("loads")
        self.add("load_blocks", moved.blocks)
        self.add("load_bytes", moved.nbytes)
        self.add("load_seconds", moved.seconds)
        self.add("failed_blocks", sum(moved.failures.values()))
        kinds = self.data.setdefault("failures", {}) if moved.failures else {}
        for kind, blocks in moved.failures.items():
            kinds[kind] = kinds.get(kind, 0) + blocks

    def loaded_within_step(self) -> None:
        self.add(WITHIN_STEP)

    def published(self, moved: Moved) -> None:
        self.add("saved_blocks", moved.blocks)
        self.add("saved_bytes", moved.nbytes)
        self.add("save_seconds", moved.seconds)
        self.add("dropped_blocks", moved.dropped)

    def looked_up(self, counts: Counts) -> None:
        self.add("lookups", counts.lookups)
        self.add("lookup_hits", counts.hits)
        self.add("lookups_late", counts.late)
        self.add("lookup_errors", counts.errors)


class KvferryPromMetrics(KVConnectorPromMetrics):
    """Counters `vllm:kvferry_*`, per engine."""

    def __init__(self, vllm_config: Any, metric_types: Any, labelnames: list[str], per_engine_labelvalues: Any) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters: dict[str, dict[int, Any]] = {}
        for name, (public, words) in COUNTERS.items():
            counter = self._counter_cls(name=f"vllm:kvferry_{public}", documentation=words, labelnames=labelnames)
            self._counters[name] = {engine: counter.labels(*values) for engine, values in per_engine_labelvalues.items()}
        self._kinds = self._counter_cls(
            name="vllm:kvferry_load_failures",
            documentation="Blocks that did not come, by what became of them.",
            labelnames=[*labelnames, "kind"],
        )

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for name, value in transfer_stats_data.items():
            if name == "failures":
                for kind, blocks in value.items():
                    self._kinds.labels(*self.per_engine_labelvalues[engine_idx], kind).inc(blocks)
            elif name in self._counters:
                self._counters[name][engine_idx].inc(value)
