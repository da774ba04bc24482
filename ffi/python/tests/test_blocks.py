"""Publishing, finding, pulling, keeping: every byte compared."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile

import numpy as np
import pytest
from conftest import BLOCK, Checksum, Cluster, a_namespace, block, key, publish

import kvferry
from kvferry import ClaimState, Geometry, Kind, Namespace, PackedHashes, Place, Plane, SharedMemory

KEYS = [key(seed) for seed in range(4)]


def test_blocks_by_value_arrive_in_the_pool_and_are_read_in_place(cluster: Cluster, published: Namespace) -> None:
    cluster.b.register_pool(published)
    assert cluster.b.lookup(published, [*KEYS, key(99)]) == [Place.REMOTE] * 4 + [Place.MISSING]
    assert cluster.b.lookup(published, [*KEYS, key(99), KEYS[0]], prefix=True) == [Place.REMOTE] * 4

    result = cluster.b.pull(published, [*KEYS, key(99)]).result(60)

    assert [it.kind for it in result.outcomes] == [Kind.PULLED] * 4 + [Kind.MISSING]
    assert {it.source_node for it in result.outcomes[:4]} == {"a"}
    assert (result.pulled, result.bytes, result.ok) == (4, 4 * BLOCK, False)
    assert [it.index for it in result.failed] == [4]
    assert result.pin is not None
    with result.pin as pin:
        for seed in range(4):
            assert pin.view(seed) == block(seed)
            assert pin.view(seed).readonly
        assert pin.valid()
        with pytest.raises(kvferry.BlockMissingError):
            pin.view(4)
    assert cluster.b.lookup(published, KEYS) == [Place.LOCAL] * 4
    again = cluster.b.pull(published, KEYS).result(60)
    assert [it.kind for it in again.outcomes] == [Kind.LOCAL] * 4
    assert again.pin is not None
    again.pin.release()


def test_a_view_ends_with_its_pin(cluster: Cluster, published: Namespace) -> None:
    pin = cluster.a.pin(published, KEYS[:2])
    first, second = pin.view(0), pin.view(1)
    array = np.frombuffer(second, dtype=np.uint8)
    assert np.shares_memory(array, np.frombuffer(second, dtype=np.uint8))
    before = cluster.a.stats().pins

    with pytest.raises(BufferError, match="in use"):
        pin.release()

    assert cluster.a.stats().pins == before
    assert bytes(array[:16]) == block(1)[:16]
    del array
    pin.release()
    pin.release()
    for view in (first, second):
        with pytest.raises(ValueError, match="released"):
            view[0]
    with pytest.raises(kvferry.PinUnknownError):
        pin.view(0)
    assert cluster.a.stats().pins < before


def test_a_slice_of_a_view_keeps_the_pin(cluster: Cluster, published: Namespace) -> None:
    pin = cluster.a.pin(published, KEYS[:1])
    part = pin.view(0)[100:200]
    with pytest.raises(BufferError):
        pin.release()
    assert part == block(0)[100:200]
    part.release()
    pin.release()


def test_a_pin_knows_that_its_blocks_were_overwritten(cluster: Cluster) -> None:
    namespace = publish(cluster.a, a_namespace())
    pin = cluster.a.pin(namespace, KEYS[:1])
    assert pin.valid()
    cluster.a.release(pin)  # the token only: the views know nothing of it
    assert cluster.a.evict(namespace).evicted == 4
    assert not pin.valid()


def test_planes_of_an_engines_memory_are_pulled_into_anothers(cluster: Cluster) -> None:
    # Two planes of half a block each: K and V, four slots, as an engine lays them out.
    namespace = a_namespace(planes=2, plane_bytes=BLOCK // 2, checksum=Checksum.ALWAYS)
    geometry = Geometry(4, tuple(Plane(at * 4 * (BLOCK // 2), BLOCK // 2, BLOCK // 2) for at in range(2)))
    ours, theirs = SharedMemory(4 * BLOCK), SharedMemory(4 * BLOCK)
    planes_a = np.frombuffer(ours, dtype=np.uint8).reshape(2, 4, BLOCK // 2)
    planes_b = np.frombuffer(theirs, dtype=np.uint8).reshape(2, 4, BLOCK // 2)
    region_a = cluster.a.register_buffer(namespace, planes_a, geometry)
    region_b = cluster.b.register_buffer(namespace, theirs, geometry)
    assert (region_a.slots, region_a.pool, region_a.planes) == (4, False, geometry.planes)

    assert region_a.reserve([2, 0]) == [2, 0]
    for slot in (2, 0):
        planes_a[:, slot] = np.frombuffer(block(slot), dtype=np.uint8).reshape(2, -1)
    sealed = region_a.seal([2, 0], [key(2), key(0)], chained=True, wait_announced=60)
    assert sealed.announced and len(sealed.generations) == 2

    result = cluster.b.pull(namespace, [key(0), key(2)], region=region_b, slots=[1, 3]).result(60)

    assert result.ok and result.pin is None
    for seed, slot in ((0, 1), (2, 3)):
        assert planes_b[:, slot].tobytes() == block(seed)
    # The replica is published.
    assert cluster.a.evict(namespace).evicted == 2
    back = cluster.a.pull(namespace, [key(0)], region=region_a, slots=[3]).result(60)
    assert [it.source_node for it in back.outcomes] == ["b"]
    assert planes_a[:, 3].tobytes() == block(0)
    assert region_b.unregister() == 2
    region_a.unregister()


def test_a_pool_is_written_in_place(cluster: Cluster) -> None:
    namespace = a_namespace()
    pool = cluster.a.register_pool(namespace, 4 * BLOCK)
    assert cluster.a.register_pool(namespace).id == pool.id
    with pytest.raises(kvferry.PoolExistsError):
        cluster.a.register_pool(namespace, exist_ok=False)
    with pool.write(2) as written:
        written.view(0)[:] = block(0)
        np.frombuffer(written.view(1), dtype=np.uint8)[:] = np.frombuffer(block(1), dtype=np.uint8)
        view = written.view(0)
        written.seal(KEYS[:2])
        with pytest.raises(ValueError, match="released"):
            view[0] = 1
    with pool.write(1) as given_up:
        given_up.view(0)[:] = block(2)
    assert cluster.a.lookup(namespace, KEYS[:3]) == [Place.LOCAL, Place.LOCAL, Place.MISSING]
    with cluster.a.pin(namespace, KEYS[:3]) as pin:
        assert [bytes(pin.view(at)) for at in range(2)] == [block(0), block(1)]
        assert pin.blocks[2] is None


def test_memory_of_ctypes_is_taken(cluster: Cluster) -> None:
    namespace = a_namespace()
    cluster.a.register_pool(namespace, BLOCK)
    assert cluster.a.put(namespace, KEYS[:1], (ctypes.c_ubyte * BLOCK).from_buffer_copy(block(0))).stored == 1
    with cluster.a.pin(namespace, KEYS[:1]) as pin:
        assert pin.view(0) == block(0)


@pytest.mark.parametrize("kind", ["file", "unlinked", "memfd", "mmap", "memory"])
def test_an_engines_own_buffer_is_found_by_its_address(cluster: Cluster, kind: str) -> None:
    namespace = a_namespace()
    # The region begins within the mapping.
    nbytes, base = 8 * BLOCK, 4096
    keep: object
    if kind == "memory":
        memory = SharedMemory(nbytes)
        keep, whole = memory, np.frombuffer(memory, dtype=np.uint8)
    elif kind == "memfd":
        fd = os.memfd_create("engine")
        os.ftruncate(fd, nbytes)
        keep = mapped = mmap.mmap(fd, nbytes)
        whole = np.frombuffer(mapped, dtype=np.uint8)
    elif kind == "mmap":
        if os.geteuid() != 0:
            pytest.skip("anonymous shared memory has no descriptor: only root can open it again")
        keep = mapped = mmap.mmap(-1, nbytes)
        whole = np.frombuffer(mapped, dtype=np.uint8)
    else:
        with tempfile.NamedTemporaryFile(dir="/dev/shm", delete=kind == "unlinked") as file:
            file.truncate(nbytes)
            keep = mapped = mmap.mmap(file.fileno(), nbytes)
            whole = np.frombuffer(mapped, dtype=np.uint8)
            name = file.name
    if kind == "unlinked":
        if os.geteuid() != 0:
            pytest.skip("without a descriptor only root can open it again")
    geometry = Geometry.contiguous(2, BLOCK)
    try:
        region = cluster.a.register_buffer(namespace, whole[base:], geometry)
        region.reserve([1])
        whole[base + BLOCK :][:BLOCK] = np.frombuffer(block(7), dtype=np.uint8)
        region.seal([1], [key(7)], wait_announced=60)
        cluster.b.register_pool(namespace, BLOCK)
        result = cluster.b.pull(namespace, [key(7)]).result(60)
        assert result.pin is not None
        with result.pin as pin:
            assert pin.view(0) == block(7)
        region.unregister()
    finally:
        if kind == "file":
            os.unlink(name)
    assert keep is not None


def test_private_memory_is_refused_until_it_is_shared_in_place(cluster: Cluster) -> None:
    namespace = a_namespace()
    array = np.zeros(32 << 20, dtype=np.uint8)  # as many bytes as have pages of their own
    array[:BLOCK] = np.frombuffer(block(3), dtype=np.uint8)
    array[-1] = 77
    geometry = Geometry.contiguous(8, BLOCK)
    with pytest.raises(kvferry.NotShareableError, match="share_in_place"):
        cluster.a.register_buffer(namespace, array, geometry)
    with pytest.raises(kvferry.NotShareableError, match="share pages"):
        kvferry.share_in_place(np.zeros(100, dtype=np.uint8))
    address = array.ctypes.data

    kvferry.share_in_place(array)
    kvferry.share_in_place(array)

    assert (array.ctypes.data, array[-1], array[: BLOCK].tobytes()) == (address, 77, block(3))
    region = cluster.a.register_buffer(namespace, array, geometry)
    region.reserve([0])
    array[:BLOCK] = np.frombuffer(block(4), dtype=np.uint8)
    region.seal([0], [key(4)], wait_announced=60)
    cluster.b.register_pool(namespace, BLOCK)
    result = cluster.b.pull(namespace, [key(4)]).result(60)
    assert result.pin is not None
    with result.pin as pin:
        assert pin.view(0) == block(4)
    region.unregister()
    # A buffer that does not hold what the geometry says.
    with pytest.raises(kvferry.InvalidArgumentError, match="geometry needs"):
        cluster.a.register_buffer(namespace, array[: 7 * BLOCK], geometry)


class Tensor:
    """What has DLPack but no buffer protocol, as torch's tensors."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: object) -> object:
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


def test_tensors_are_taken_by_dlpack(cluster: Cluster) -> None:
    namespace = a_namespace()
    cluster.a.register_pool(namespace, 4 * BLOCK)
    tensor = Tensor(np.frombuffer(bytearray(block(0) + block(1)), dtype=np.uint16).reshape(2, -1))
    assert cluster.a.put(namespace, KEYS[:2], tensor, wait_announced=60).announced
    with cluster.a.pin(namespace, KEYS[:2]) as pin:
        assert [bytes(pin.view(at)) for at in range(2)] == [block(0), block(1)]
    crossed = Tensor(np.zeros((BLOCK, 2), dtype=np.uint8).T)
    with pytest.raises(BufferError, match="contiguous"):
        cluster.a.put(namespace, [key(5)], crossed)
    with pytest.raises(kvferry.InvalidArgumentError, match="neither"):
        cluster.a.put(namespace, [key(5)], object())
    shared = SharedMemory(2 * BLOCK)
    tensor = Tensor(np.frombuffer(shared, dtype=np.float32).reshape(2, -1))
    region = cluster.b.register_buffer(namespace, tensor, Geometry.contiguous(2, BLOCK))
    assert cluster.b.pull(namespace, KEYS[1:2], region=region, slots=[0]).result(60).ok
    assert tensor.array[0].tobytes() == block(1)
    region.unregister()


def test_packed_hashes_are_hashes(cluster: Cluster, published: Namespace) -> None:
    packed = PackedHashes(b"".join(KEYS), 32)
    assert (len(packed), packed[2]) == (4, KEYS[2])
    assert cluster.b.lookup(published, packed) == [Place.REMOTE] * 4
    with pytest.raises(kvferry.InvalidArgumentError):
        PackedHashes(b"x" * 33, 32)
    with pytest.raises(kvferry.InvalidArgumentError, match="different lengths"):
        cluster.b.lookup(published, [b"x" * 32, b"x" * 16])


def test_no_blocks_are_no_question(cluster: Cluster, published: Namespace) -> None:
    assert cluster.a.lookup(published, []) == []
    nothing = cluster.a.pull(published, []).result(60)
    assert nothing.ok and nothing.outcomes == () and nothing.pin is None
    assert cluster.a.put(published, [], []).announced
    assert cluster.a.claim(published, []).states == ()
    cluster.a.pin(published, []).release()
    pool = cluster.a.register_pool(published)
    assert pool.seal([], []).generations == ()


def test_eviction_spares_what_is_pinned(cluster: Cluster, published: Namespace) -> None:
    assert cluster.a.evict(published, []).evicted == 0
    with cluster.a.pin(published, KEYS[:1]):
        done = cluster.a.evict(published)
        assert (done.evicted, done.kept_pinned) == (3, 1)
    assert cluster.a.evict(published, KEYS[:1]).evicted == 1


def test_a_claim_is_one_engines_until_it_publishes(cluster: Cluster, published: Namespace) -> None:
    cluster.b.register_pool(published)
    wanted = [KEYS[0], key(50), key(51)]
    mine = cluster.a.claim(published, wanted)
    assert mine.states == (ClaimState.STORED, ClaimState.GRANTED, ClaimState.GRANTED)
    assert mine.token != 0 and 0 < mine.ttl <= 30
    theirs = cluster.b.claim(published, wanted)
    assert theirs.states == (ClaimState.STORED, ClaimState.CLAIMED, ClaimState.CLAIMED)
    assert theirs.holders == (None, "a", "a") and theirs.token == 0
    assert cluster.a.renew_claims(mine.token, ttl=60) == 2
    assert cluster.a.release_claims(mine.token, [key(51)]) == 1
    assert cluster.b.claim(published, wanted).states[1:] == (ClaimState.CLAIMED, ClaimState.GRANTED)
    assert cluster.a.release_claims(mine.token) == 1


def test_numbers(cluster: Cluster, published: Namespace) -> None:
    stats = cluster.a.stats()
    assert (stats.node, stats.incarnation) == (cluster.a.node, cluster.a.incarnation)
    assert [link.connected for link in stats.coordinators] == [True]
    pool = next(it for it in stats.regions if it.namespace == published.name)
    assert (pool.pool, pool.sealed, pool.free) == (True, 4, pool.slots - 4)
    assert cluster.a.region(pool.region).namespace == published.name
