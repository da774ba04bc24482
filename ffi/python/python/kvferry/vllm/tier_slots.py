"""Which slots of vLLM's CPU region are published, and how they stop being it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import kvferry


class Slots:
    """Of one registration of the region. Used by the scheduler's thread (`withdraw`) and the tier's."""

    def __init__(self, client: kvferry.Client, region: kvferry.Region) -> None:
        self.client, self.region = client, region
        self._lock = threading.Lock()
        self._published: set[int] = set()
        self._reserved: set[int] = set()

    @property
    def published(self) -> int:
        return len(self._published)

    def publish(self, chunks: Sequence[int], keys: Sequence[bytes]) -> None:
        """They are complete, and nothing writes to them until they are withdrawn."""
        fresh = [(chunk, key) for chunk, key in zip(chunks, keys) if chunk not in self._published]
        if not fresh:
            return
        slots = [chunk for chunk, _ in fresh]
        self.client.reserve(self.region, slots)
        # Before the call: where it fails by a deadline it may still be done, and an eviction has to know.
        self._now_published(slots)
        self.client.seal(self.region, slots, [key for _, key in fresh])

    def landed(self, chunks: Sequence[int]) -> None:
        """A pull has sealed them."""
        self._now_published(chunks)

    def release(self, chunks: Sequence[int]) -> None:
        """Before a pull: it reserves them for itself."""
        with self._lock:
            held = [chunk for chunk in chunks if chunk in self._reserved]
            self._reserved.difference_update(held)
        if held:
            self.client.abort(self.region, held)

    def published_of(self, chunks: Sequence[int]) -> set[int]:
        """Those of them that somebody may read."""
        with self._lock:
            return self._published.intersection(chunks)

    def withdraw(self, chunks: Sequence[int]) -> set[int]:
        """Before they are overwritten: readers see that they changed. Those that are in use are returned, and stay.
        Any other failure, a deadline say, is raised: they may still be published, and stay too."""
        wanted = sorted(self.published_of(chunks))
        if not wanted:
            return set()
        busy = self._reserve_all(wanted)
        gone = [chunk for chunk in wanted if chunk not in busy]
        with self._lock:
            self._published.difference_update(gone)
            self._reserved.update(gone)
        return busy

    def settled(self, chunk: int) -> bool:
        """Of a slot whose read was given up: whether nothing writes to it any more."""
        try:
            self.client.reserve(self.region, [chunk])
        except kvferry.SlotBusyError:
            return False
        with self._lock:
            self._reserved.add(chunk)
        return True

    def _reserve_all(self, chunks: list[int]) -> set[int]:
        """All at once; where one is in use, each by itself."""
        try:
            self.client.reserve(self.region, chunks)
            return set()
        except kvferry.SlotBusyError:
            if len(chunks) == 1:
                return set(chunks)
        busy = set()
        for chunk in chunks:
            try:
                self.client.reserve(self.region, [chunk])
            except kvferry.SlotBusyError:
                busy.add(chunk)
        return busy

    def _now_published(self, chunks: Sequence[int]) -> None:
        with self._lock:
            self._published.update(chunks)
            self._reserved.difference_update(chunks)
