"""kvferry as a storage back end of SGLang's HiCache: pages of one server are prefetched by all others of the namespace.

    --enable-hierarchical-cache --hicache-storage-backend dynamic --hicache-storage-backend-extra-config '{
        "backend_name": "kvferry", "module_path": "kvferry.sglang", "class_name": "KvferryStorage",
        "interface_v1": 1, "allocator": "shm", "kvferry": {"socket": "/run/kvferry/node.sock"}}'

**Store.** HiCache reuses a page of its host pool without telling its storage, so that a page cannot be published where it
lies. It is copied once, by this process, into the pool of the agent, which owns and evicts it.

**Load.** The host pool is registered as a region, and blocks are pulled straight into its pages. They are forgotten by the
agent before SGLang hears of them: from then on the page is SGLang's to overwrite. That needs host memory that the
agent can map: `"allocator": "shm"`. Other shared memory is found where this process may open it again (as root), and private
memory that no device has pinned is shared in place. Otherwise, and for pools of several allocations, pages are pulled into
the agent's pool and copied from there; the log says so.

What is configured wrongly ends the start. Afterwards a failure is a page that is not there (SGLang knows no third answer): it
is computed, and the log says why, once a minute. An agent that was restarted is connected to again.

The namespace is made of model, dtype, page size, layout, and rank: pages of two servers meet only where they are
the same bytes. Keys of SGLang's are chained SHA-256 in hex; they are 32 bytes here.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy
import torch
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    HiCacheStorageConfig,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
    PoolTransferResult,
)

from . import (
    AgentLostError,
    Checksum,
    Client,
    CoordinatorUnreachableError,
    DeadlineError,
    Geometry,
    KvferryError,
    Layout,
    Namespace,
    NotShareableError,
    Place,
    Plane,
    PoolFullError,
    Region,
    RegionUnknownError,
    ShuttingDownError,
    SlotBusyError,
    connect,
    share_in_place,
)

logger = logging.getLogger(__name__)

_HASH_LEN = 32
_MAX_NAME = 256
# The agent answers or settles within its own bounds (12 s); a page must not go back to SGLang while it may be written to.
_QUIET_S = 60.0
# Between two warnings of one kind.
_WARN_S = 60.0
# An agent that is gone is looked for this often, and for this long.
_REVIVE_EVERY_S = 5.0
_REVIVE_S = 0.5
# What may stand under "kvferry" in the extra configuration, and what it is otherwise.
_SETTINGS: dict[str, Any] = {
    "socket": None,
    "namespace": "sglang",
    "revision": "",
    "pool_bytes": 0,
    "lookup_timeout_s": 1.0,
    "pull_timeout_s": 5.0,
    "checksum": "off",
}


def key_bytes(key: str) -> bytes:
    """SGLang's key of a page as a block hash: the SHA-256 that it is, or, for keys of another form, theirs."""
    if len(key) == 2 * _HASH_LEN:
        try:
            return bytes.fromhex(key)
        except ValueError:
            pass
    return hashlib.sha256(key.encode()).digest()


class _Settings(NamedTuple):
    socket: str | None
    namespace: str
    revision: str
    pool_bytes: int
    lookup_timeout_s: float
    pull_timeout_s: float
    checksum: Checksum

    @staticmethod
    def of(extra: dict[str, Any]) -> _Settings:
        given = extra.get("kvferry", {})
        unknown = sorted(set(given) - set(_SETTINGS))
        if unknown:
            raise ValueError(f"kvferry has no settings {unknown}; it has {sorted(_SETTINGS)}")
        given = {**_SETTINGS, **given}
        try:
            given["checksum"] = Checksum[str(given["checksum"]).upper()]
        except KeyError:
            raise ValueError(f"checksum is {given['checksum']!r}: off, sampled or always") from None
        return _Settings(**given)


class _Pages(NamedTuple):
    """How pages lie in a host pool: planes in the order of SGLang's own zero-copy description."""

    start: int
    end: int
    planes: tuple[Plane, ...]
    count: int

    @property
    def block_bytes(self) -> int:
        return sum(plane.len for plane in self.planes)

    @staticmethod
    def of(pool: Any) -> _Pages:
        """Found by asking for the first pages and the last."""
        if not hasattr(pool, "get_page_buffer_meta"):
            raise NotImplementedError(f"kvferry: {type(pool).__name__} does not say where its pages lie")
        page, count = int(pool.page_size), int(pool.size) // int(pool.page_size)

        def meta(at: int) -> tuple[list[int], list[int]]:
            pointers, sizes = pool.get_page_buffer_meta(torch.arange(at * page, (at + 1) * page))
            return [int(it) for it in pointers], [int(it) for it in sizes]

        first, sizes = meta(0)
        last, last_sizes = meta(count - 1)
        if sizes != last_sizes or len(first) != len(sizes):
            raise NotImplementedError(f"{type(pool).__name__}: pages of different sizes")
        steps = max(count - 1, 1)
        strides = [(high - low) // steps for low, high in zip(first, last)]
        if count > 1 and meta(1)[0] != [low + stride for low, stride in zip(first, strides)]:
            raise NotImplementedError(f"{type(pool).__name__}: pages that are not evenly spaced")
        start = min(first)
        planes = tuple(
            Plane(low - start, stride or size, size) for low, stride, size in zip(first, strides, sizes)
        )
        end = max(high + size for high, size in zip(last, sizes))
        return _Pages(start, end, planes, count)


class _Bytes:
    """Memory of another object by its address, for the buffer protocol."""

    def __init__(self, start: int, end: int, owner: Any) -> None:
        self.array = (ctypes.c_ubyte * (end - start)).from_address(start)
        self.owner = owner


class _HostPool:
    """One of SGLang's host pools: its namespace, and its pages as blocks."""

    def __init__(self, storage: KvferryStorage, pool: Any, label: str) -> None:
        self._storage = storage
        self._pool = pool
        self._label = label
        self._page = int(pool.page_size)
        self._pages = _Pages.of(pool)
        self.namespace = storage._namespace(pool, label, self._pages.block_bytes)
        self._lock = threading.Lock()
        self._loading = threading.Lock()  # one load at a time: each clears up after itself before the next begins
        self._direct = True
        self._region: Region | None = None
        self._client: Client | None = None
        self._ours: Region | None = None
        self._ready()

    # --- registering ---

    def _ready(self) -> tuple[Client, Region]:
        """The client, and the agent's pool, with everything registered with this very agent."""
        with self._lock:
            client = self._storage._live()
            if client is not self._client or self._ours is None:
                self._region = None  # It has ended with its connection.
                self._ours = client.register_pool(self.namespace, self._storage.settings.pool_bytes)
                self._client = client
            if self._direct and self._region is None:
                self._register(client)
            return client, self._ours

    def _register(self, client: Client) -> None:
        pages = self._pages
        memory = _Bytes(pages.start, pages.end, self._pool)
        geometry = Geometry(pages.count, pages.planes)
        try:
            try:
                self._region = client.register_buffer(self.namespace, memory.array, geometry)
            except NotShareableError:
                if getattr(self._pool, "pin_memory", False):
                    raise  # A device has its pages: they must stay where they are.
                share_in_place(memory.array)
                self._region = client.register_buffer(self.namespace, memory.array, geometry)
        except NotShareableError as error:
            self._direct = False
            logger.warning(
                "kvferry: pages of %s are copied once more when they are loaded: %s; "
                'add "allocator": "shm" to the storage back end\'s extra configuration',
                self._label,
                error,
            )

    # --- pages ---

    def _slots(self, host_indices: torch.Tensor, count: int) -> list[int]:
        firsts = host_indices[:: self._page].tolist()
        if len(firsts) != count or host_indices.numel() != count * self._page:
            raise ValueError(f"{host_indices.numel()} host indices for {count} pages of {self._page}")
        return [first // self._page for first in firsts]

    def _pieces(self, slot: int) -> list[tuple[int, int]]:
        start = self._pages.start
        return [(start + plane.base + slot * plane.stride, plane.len) for plane in self._pages.planes]

    def set(self, keys: Sequence[bytes], host_indices: torch.Tensor) -> list[bool]:
        """Copies pages into the agent's pool and publishes them."""
        slots = self._slots(host_indices, len(keys))
        with self._storage._may_fail(f"storing pages of {self._label}"):
            client, ours = self._ready()
            done = self._kept(client, keys)
            missing = [at for at, there in enumerate(done) if not there]
            try:
                self._store(ours, [keys[at] for at in missing], [slots[at] for at in missing])
                return [True] * len(keys)
            except PoolFullError as error:
                self._storage._warn("making room for pages", error)
            # More at once than there is room for: what fits.
            for at in missing:
                try:
                    self._store(ours, [keys[at]], [slots[at]])
                except PoolFullError:
                    break
                done[at] = True
            return done
        return [False] * len(keys)

    def _kept(self, client: Client, keys: Sequence[bytes]) -> list[bool]:
        """Which pages the agent has already. Where nobody answers: none, so that an outage of the coordinator keeps nothing from
        being stored; what the agent has twice it keeps once."""
        try:
            places = client.lookup(self.namespace, keys, timeout=self._storage.settings.lookup_timeout_s)
        except (CoordinatorUnreachableError, DeadlineError):
            return [False] * len(keys)
        return [place is Place.LOCAL for place in places]

    def _store(self, ours: Region, keys: list[bytes], slots: list[int]) -> None:
        if not keys:
            return
        with ours.write(len(keys)) as written:
            for at, slot in enumerate(slots):
                target = (ctypes.c_ubyte * self._pages.block_bytes).from_buffer(written.view(at))
                address = ctypes.addressof(target)
                for source, nbytes in self._pieces(slot):
                    ctypes.memmove(address, source, nbytes)
                    address += nbytes
                del target  # The view is ended by the seal.
            written.seal(keys)

    def get(self, keys: Sequence[bytes], host_indices: torch.Tensor) -> list[bool]:
        """Fills pages with their blocks."""
        slots = self._slots(host_indices, len(keys))
        doing = f"loading pages of {self._label}"
        with self._loading, self._storage._may_fail(doing):
            client, _ = self._ready()
            region = self._region
            if region is not None:
                landed = self._pull_direct(client, region, keys, slots)
            else:
                landed = self._pull_copied(client, keys, slots)
            if not all(landed):
                self._storage._count("missed_pages", landed.count(False))
            return landed
        return [False] * len(keys)

    def _pull_direct(
        self, client: Client, region: Region, keys: Sequence[bytes], slots: list[int]
    ) -> list[bool]:
        timeout = self._storage.settings.pull_timeout_s
        pull = client.pull(self.namespace, keys, region=region, slots=slots, timeout=timeout, replica=False)
        try:
            pull.wait()
            landed = [False] * len(keys)
            for outcome in pull.outcomes():
                landed[outcome.index] = outcome.ok
            failure = pull.exception(0)
            if isinstance(failure, KvferryError):
                self._storage._failed(f"loading pages of {self._label}", failure)
            return landed
        finally:
            # SGLang overwrites these pages without a word: before it hears of them, the agent must have forgotten them, and
            # nothing may write to them any more.
            self._forget(region, slots)

    def _forget(self, region: Region, slots: list[int]) -> None:
        deadline = time.monotonic() + _QUIET_S
        for slots_of in [slots] if len(set(slots)) == len(slots) else [[slot] for slot in slots]:
            while True:
                try:
                    region.reserve(slots_of)
                    region.abort(slots_of)
                    break
                except SlotBusyError:
                    # Somebody copies from them, or a read has not settled.
                    if time.monotonic() > deadline:
                        self._end(region)
                        return
                    time.sleep(0.002)
                except KvferryError:
                    self._end(region)
                    return

    def _end(self, region: Region) -> None:
        """Ends the whole region: where that has succeeded nothing writes to the pool any more."""
        self._region = None
        deadline = time.monotonic() + _QUIET_S
        while True:
            try:
                region.unregister()
                return
            except KvferryError as error:
                if self._storage._is_over(error):
                    return  # With the agent, or the connection to it, the region has ended.
                if time.monotonic() > deadline:
                    # Nothing else is safe: SGLang would give pages away that may still be written to.
                    self._direct = False
                    raise
                time.sleep(0.05)

    def _pull_copied(self, client: Client, keys: Sequence[bytes], slots: list[int]) -> list[bool]:
        timeout = self._storage.settings.pull_timeout_s
        result = client.pull(self.namespace, keys, timeout=timeout).result()
        if result.pin is None:
            return [False] * len(keys)
        with result.pin as pin:
            for outcome, slot in zip(result.outcomes, slots):
                if outcome.ok:
                    address = _address(pin.view(outcome.index))
                    for target, nbytes in self._pieces(slot):
                        ctypes.memmove(target, address, nbytes)
                        address += nbytes
            # Where the pin's time was over meanwhile, what was copied may be anything.
            return [outcome.ok for outcome in result.outcomes] if pin.valid() else [False] * len(keys)

    def places(self, keys: Sequence[bytes]) -> list[bool]:
        """Which pages could be had."""
        with self._storage._may_fail(f"looking for pages of {self._label}"):
            client, _ = self._ready()
            places = client.lookup(self.namespace, keys, timeout=self._storage.settings.lookup_timeout_s)
            return [place in (Place.LOCAL, Place.REMOTE) for place in places]
        return [False] * len(keys)

    def prefix(self, keys: Sequence[bytes]) -> int:
        """How many pages could be had from the first on."""
        with self._storage._may_fail(f"looking for pages of {self._label}"):
            client, _ = self._ready()
            timeout = self._storage.settings.lookup_timeout_s
            return len(client.lookup(self.namespace, keys, prefix=True, timeout=timeout))
        return 0

    def clear(self) -> None:
        client, _ = self._ready()
        client.evict(self.namespace)

    def close(self) -> None:
        if self._region is not None:
            self._end(self._region)


def _address(view: memoryview) -> int:
    """Of a read-only view, which ctypes does not tell; good as long as the view."""
    return numpy.frombuffer(view, dtype=numpy.uint8).ctypes.data


class _MayFail:
    """A storage that cannot be asked is one that has nothing, to SGLang; the log tells them apart."""

    def __init__(self, storage: KvferryStorage, doing: str) -> None:
        self._storage, self._doing = storage, doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, value: BaseException | None, trace: Any) -> bool:
        if not isinstance(value, KvferryError):
            return False
        self._storage._failed(self._doing, value)
        return True


class KvferryStorage(HiCacheStorage):
    """See the module's page."""

    def __init__(self, storage_config: HiCacheStorageConfig, kwargs: Any = None) -> None:
        self._config = storage_config
        self.settings = _Settings.of(storage_config.extra_config or {})
        self._zero_copy = bool((storage_config.extra_config or {}).get("interface_v1", 0))
        self._pools: dict[str, _HostPool] = {}
        self._flat: Namespace | None = None
        self._flat_client: Client | None = None
        self._warned: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._counting = threading.Lock()
        self._reviving = threading.Lock()
        self._lost = False
        self._looked = 0.0
        self.client: Client = connect(self.settings.socket)
        logger.info("kvferry: storage on agent %s", self.client.node)

    # --- what pools there are ---

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        super().register_mem_pool_host(mem_pool_host)
        if self._zero_copy:
            # Of a group the anchor: the others are registered by themselves.
            anchor = getattr(mem_pool_host, "anchor_entry", None)
            pool = mem_pool_host if anchor is None else anchor.host_pool
            self._pools[PoolName.KV.value] = _HostPool(self, pool, PoolName.KV.value)

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        name = str(host_pool_name)
        if name not in self._pools:
            self._pools[name] = _HostPool(self, host_pool, name)

    def _namespace(self, pool: Any, label: str, block_bytes: int) -> Namespace:
        config, settings = self._config, self.settings
        # State that is sharded over ranks although the model's KV is replicated: Mamba's.
        shared = config.is_mla_model and label != PoolName.MAMBA.value
        words = {
            "model": config.model_name or "",
            "revision": settings.revision,
            "pool": label,
            "kind": type(pool).__name__,
            "layout": str(getattr(pool, "layout", "")),
            "dtype": str(getattr(pool, "dtype", "")),
            "tp": None if shared else [config.tp_rank, config.tp_size],
            "pp": [config.pp_rank, config.pp_size],
            "cp": [config.attn_cp_rank, config.attn_cp_size],
            "dcp": [config.dcp_rank, config.dcp_size],
            "bytes": "planes" if self._zero_copy else "flat",
        }
        print_of = hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()[:16]
        model = (config.model_name or "model").strip("/").replace("/", "-")
        rank = "" if shared else f"/tp{config.tp_rank}of{config.tp_size}"
        name = f"{settings.namespace}/{model}/{label}{rank}/{print_of}"
        if len(name.encode()) > _MAX_NAME:
            name = f"{settings.namespace}/{label}{rank}/{print_of}"
        dtype = str(getattr(pool, "dtype", "u8")).replace("torch.", "")[:32]
        layout = Layout(dtype, int(pool.page_size), 1, block_bytes)
        return Namespace(name, layout, _HASH_LEN, settings.checksum)

    # --- pages of the KV pool, straight into its memory ---

    def _kv(self) -> _HostPool:
        return self._pools[PoolName.KV.value]

    def batch_exists(self, keys: list[str], extra_info: Any = None) -> int:
        """How many keys from the first on can be had."""
        if not keys:
            return 0
        hashes = [key_bytes(key) for key in keys]
        if self._zero_copy:
            return self._kv().prefix(hashes)
        with self._may_fail("looking for pages"):
            client, timeout = self._live(), self.settings.lookup_timeout_s
            return len(client.lookup(self._flat_namespace(client, None), hashes, prefix=True, timeout=timeout))
        return 0

    def batch_get_v1(self, keys: list[str], host_indices: torch.Tensor, extra_info: Any = None) -> list[bool]:
        """Fills the pages at these indices; per key whether it did."""
        return self._kv().get([key_bytes(key) for key in keys], host_indices)

    def batch_set_v1(self, keys: list[str], host_indices: torch.Tensor, extra_info: Any = None) -> list[bool]:
        """Stores the pages at these indices; per key whether it did."""
        return self._kv().set([key_bytes(key) for key in keys], host_indices)

    # --- hybrid pools ---

    def batch_exists_v2(
        self, keys: list[str], pool_transfers: list[PoolTransfer] | None = None, extra_info: Any = None
    ) -> PoolTransferResult:
        """The longest prefix that every pool can restore, by its own policy."""
        hashes = [key_bytes(key) for key in keys]
        kv_pages = self.batch_exists(keys, extra_info)
        hits: dict[str, int] = {PoolName.KV: kv_pages} if kv_pages else {}
        restorable = set(range(1, kv_pages + 1))
        for transfer in pool_transfers or []:
            if not restorable:
                break
            there = self._pools[str(transfer.name)].places(hashes[:kv_pages])
            if transfer.hit_policy == PoolHitPolicy.ALL_PAGES:
                boundary = there.index(False) if False in there else len(there)
                held = set(range(1, boundary + 1))
            elif transfer.hit_policy == PoolHitPolicy.TRAILING_PAGES:
                trailing = max(1, len(transfer.keys or ()))
                held = {
                    length
                    for length in range(1, kv_pages + 1)
                    if all(there[max(0, length - trailing) : length])
                }
                boundary = max(held, default=0)
            else:
                raise ValueError(f"kvferry does not know the hit policy {transfer.hit_policy}")
            if boundary:
                hits[transfer.name] = boundary
            restorable &= held
        prefix = sorted(restorable)
        return PoolTransferResult(prefix[-1] if prefix else 0, hits, prefix)

    def _each(self, transfers: list[PoolTransfer], operation: str) -> dict[str, list[bool]]:
        results: dict[str, list[bool]] = {}
        for transfer in transfers:
            keys, indices = transfer.keys or [], transfer.host_indices
            pool = self._pools[str(transfer.name)]
            if indices is None or indices.numel() != len(keys) * pool._page:
                logger.error("kvferry: %s of %s without as many pages as keys", operation, transfer.name)
                results[transfer.name] = [False] * len(keys)
                continue
            results[transfer.name] = getattr(pool, operation)([key_bytes(key) for key in keys], indices)
        return results

    def batch_get_v2(self, transfers: list[PoolTransfer], extra_info: Any = None) -> dict[str, list[bool]]:
        """As `batch_get_v1`, for each pool."""
        return self._each(transfers, "get")

    def batch_set_v2(self, transfers: list[PoolTransfer], extra_info: Any = None) -> dict[str, list[bool]]:
        """As `batch_set_v1`, for each pool."""
        return self._each(transfers, "set")

    # --- one flat tensor per page, without interface_v1 ---

    def _flat_namespace(self, client: Client, value: torch.Tensor | None) -> Namespace:
        if self._flat is None or self._flat_client is not client:
            page = value if value is not None else self.mem_pool_host.get_dummy_flat_data_page()
            nbytes = page.numel() * page.element_size()
            namespace = self._namespace(self.mem_pool_host, PoolName.KV.value, nbytes)
            client.register_pool(namespace, self.settings.pool_bytes)
            self._flat, self._flat_client = namespace, client
        return self._flat

    def batch_set(
        self,
        keys: list[str],
        values: Any = None,
        target_locations: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        """Stores flat pages by value."""
        if not keys:
            return True
        with self._may_fail("storing pages"):
            pages = [value.detach().contiguous().view(torch.uint8).reshape(-1) for value in values]
            client = self._live()
            client.put(self._flat_namespace(client, values[0]), [key_bytes(key) for key in keys], pages)
            return True
        return False

    def batch_get(
        self, keys: list[str], target_locations: Any = None, target_sizes: Any = None
    ) -> list[torch.Tensor | None]:
        """Fills flat pages; None for those that did not come."""
        found: list[torch.Tensor | None] = [None] * len(keys)
        if not keys:
            return found
        with self._may_fail("loading pages"):
            client = self._live()
            namespace = self._flat_namespace(client, target_locations[0])
            hashes = [key_bytes(key) for key in keys]
            result = client.pull(namespace, hashes, timeout=self.settings.pull_timeout_s).result()
            if result.pin is None:
                return found
            with result.pin as pin:
                for outcome in result.outcomes:
                    if outcome.ok:
                        target, view = target_locations[outcome.index], pin.view(outcome.index)
                        assert target.is_contiguous() and target.nbytes == len(view)
                        ctypes.memmove(target.data_ptr(), _address(view), len(view))
                valid = pin.valid()
            for outcome in result.outcomes:
                if outcome.ok and valid:
                    found[outcome.index] = target_locations[outcome.index]
            return found
        return [None] * len(keys)

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> torch.Tensor | None:
        """As `batch_get`, of one."""
        return self.batch_get([key], [target_location])[0]

    def set(
        self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None
    ) -> bool:
        """As `batch_set`, of one."""
        return self.batch_set([key], [value])

    def exists(self, key: str) -> bool:
        """As `batch_exists`, of one."""
        return self.batch_exists([key]) == 1

    # --- the rest ---

    def clear(self) -> None:
        """Drops this agent's pages of this server's namespaces; other servers keep theirs."""
        with self._may_fail("clearing"):
            for pool in self._pools.values():
                pool.clear()
            if self._flat is not None:
                self._live().evict(self._flat)

    def close(self) -> None:
        """Ends the registrations and the connection."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()
        self.client.close()

    def counts(self) -> dict[str, int]:
        """How many pages were asked for and did not come (`missed_pages`), and calls that failed (`failures`)."""
        with self._counting:
            return dict(self._counts)

    def _may_fail(self, doing: str) -> _MayFail:
        return _MayFail(self, doing)

    def _live(self) -> Client:
        """The connection, made anew where the agent was lost and is back."""
        with self._reviving:
            if not self._lost:
                return self.client
            now = time.monotonic()
            if now - self._looked < _REVIVE_EVERY_S:
                raise AgentLostError(f"agent {self.client.node} is gone; it is looked for every {_REVIVE_EVERY_S} s")
            self._looked = now
            fresh = connect(self.settings.socket, connect_timeout=_REVIVE_S)
            self.client.close()
            self.client, self._lost = fresh, False
            logger.info("kvferry: agent %s is back", fresh.node)
            return fresh

    def _failed(self, doing: str, error: KvferryError) -> None:
        if isinstance(error, (AgentLostError, ShuttingDownError)):
            with self._reviving:
                self._lost = True
        self._warn(doing, error)
        self._count("failures", 1)

    def _is_over(self, error: KvferryError) -> bool:
        return isinstance(error, (AgentLostError, RegionUnknownError))

    def _count(self, what: str, by: int) -> None:
        with self._counting:
            self._counts[what] = self._counts.get(what, 0) + by

    def _warn(self, doing: str, error: BaseException | None) -> None:
        now = time.monotonic()
        kind = f"{doing}: {type(error).__name__}"
        with self._counting:
            if now - self._warned.get(kind, -_WARN_S) < _WARN_S:
                return
            self._warned[kind] = now
        logger.warning("kvferry: %s failed: %s", doing, error)
