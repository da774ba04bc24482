/* refusals SOCKET_A SOCKET_B: what is wrong is said, with its own status, and nothing is harmed by it. */
#include "check.h"

static void null_and_nonsense(kvf_agent *agent) {
    kvf_error error;
    kvf_agent *none = NULL;
    kvf_pull *pull = NULL;
    kvf_region region;
    size_t n;
    int done;
    kvf_options options = {.size = sizeof options};
    EXPECT(KVF_INVALID_ARGUMENT, kvf_open(NULL, &none, &error));
    EXPECT(KVF_INVALID_ARGUMENT, kvf_open(&options, &none, &error));
    EXPECT(KVF_INVALID_ARGUMENT, kvf_open(&options, NULL, &error));
    options.socket = "/nowhere/agent.sock";
    options.connect_timeout_ms = 300;
    EXPECT(KVF_AGENT_UNREACHABLE, kvf_open(&options, &none, &error));
    CHECK(strstr(error.message, options.socket) != NULL && none == NULL);
    options.connect_timeout_ms = KVF_MAX_TIMEOUT_MS + 1;
    EXPECT(KVF_INVALID_ARGUMENT, kvf_open(&options, &none, &error));
    options.size = 1;
    EXPECT(KVF_INVALID_ARGUMENT, kvf_open(&options, &none, &error));
    EXPECT(KVF_INVALID_ARGUMENT, kvf_stats_get(NULL, NULL, &error));
    EXPECT(KVF_INVALID_ARGUMENT, kvf_stats_get(agent, NULL, &error));
    EXPECT(KVF_INVALID_ARGUMENT, kvf_register_pool(agent, NULL, 0, 0, &region, &error));
    EXPECT(KVF_INVALID_ARGUMENT, kvf_register_pool(agent, NULL, 0, 0, NULL, &error));
    EXPECT(KVF_INVALID_ARGUMENT, kvf_register_cuda_ipc(agent, NULL, NULL, NULL, 0, &region, &error));
    EXPECT(KVF_INVALID_ARGUMENT, kvf_reserve(agent, 1, NULL, 3, &error));
    EXPECT(KVF_BOUND_REACHED, kvf_reserve(agent, 1, (uint32_t *)&options, KVF_MAX_HASHES + 1, &error));
    EXPECT(KVF_INVALID_ARGUMENT, kvf_pull_start(agent, NULL, &pull, &error));
    EXPECT(KVF_INVALID_ARGUMENT, kvf_pull_poll(NULL, NULL, 0, &n, &done, &error));
    EXPECT(KVF_INVALID_ARGUMENT, kvf_pull_wait((kvf_pull *)3, 0, &error));
    EXPECT(KVF_OK, kvf_close(NULL, &error));
    kvf_pull_free(NULL);
    CHECK(kvf_reserve(NULL, 1, NULL, 0, NULL) == KVF_INVALID_ARGUMENT); /* nobody need hear of it */
}

static void hashes_and_flags(kvf_agent *agent, const kvf_namespace *space) {
    kvf_error error;
    uint8_t bytes[SLOTS * HASH] = {0};
    kvf_hashes hashes = {.bytes = bytes, .hash_len = 7, .count = 1};
    kvf_place places[SLOTS];
    size_t answered;
    EXPECT(KVF_HASH_LENGTH, kvf_lookup(agent, space->name, &hashes, 0, 60000, places, &answered, &error));
    hashes.hash_len = 16; /* a length, but not this namespace's */
    EXPECT(KVF_HASH_LENGTH, kvf_lookup(agent, space->name, &hashes, 0, 60000, places, &answered, &error));
    hashes.hash_len = HASH;
    hashes.count = KVF_MAX_HASHES + 1;
    EXPECT(KVF_BOUND_REACHED, kvf_lookup(agent, space->name, &hashes, 0, 60000, places, &answered, &error));
    hashes.count = 1;
    EXPECT(KVF_NAMESPACE_UNKNOWN, kvf_lookup(agent, "nobodys", &hashes, 0, 60000, places, &answered, &error));
    EXPECT(KVF_INVALID_ARGUMENT, kvf_lookup(agent, "\xff", &hashes, 0, 60000, places, &answered, &error));
    EXPECT(KVF_INVALID_ARGUMENT, kvf_lookup(agent, space->name, &hashes, 0, 0, NULL, &answered, &error));
    EXPECT(KVF_OK, kvf_lookup(agent, space->name, &hashes, 0, 60000, places, &answered, &error));
    CHECK(answered == 1 && places[0] == KVF_PLACE_MISSING);
    EXPECT(KVF_OK, kvf_lookup(agent, space->name, &hashes, 1, 60000, places, &answered, &error));
    CHECK(answered == 0);
    EXPECT(KVF_INVALID_ARGUMENT,
           kvf_put(agent, space->name, &hashes, bytes, 10, 0, NULL, 0, 0, NULL, &error)); /* no whole block */
    EXPECT(KVF_INVALID_ARGUMENT, kvf_put(agent, space->name, &hashes, bytes, 10, 64, NULL, 0, 0, NULL, &error));
    EXPECT(KVF_PIN_UNKNOWN, kvf_release(agent, 12345, &error));
    /* No hashes are no blocks, not all of them. */
    kvf_evicted evicted = {9, 9};
    hashes.count = 0;
    EXPECT(KVF_OK, kvf_evict(agent, space->name, &hashes, &evicted, &error));
    CHECK(evicted.evicted == 0);
}

static void slots(kvf_agent *agent, kvf_agent *other, const kvf_namespace *space) {
    kvf_error error;
    uint8_t *memory;
    uint32_t region = region_of(agent, space, &memory);
    uint32_t one[] = {5}, far[] = {SLOTS};
    uint8_t bytes[HASH];
    hash_them(bytes, 77, 1);
    kvf_hashes hash = {.bytes = bytes, .hash_len = HASH, .count = 1};
    EXPECT(KVF_SLOT_OUT_OF_REGION, kvf_reserve(agent, region, far, 1, &error));
    EXPECT(KVF_REGION_UNKNOWN, kvf_reserve(agent, region + 100, one, 1, &error));
    EXPECT(KVF_SLOT_NOT_RESERVED, kvf_seal(agent, region, one, &hash, NULL, &error));
    EXPECT(KVF_OK, kvf_reserve(agent, region, one, 1, &error));
    EXPECT(KVF_SLOT_BUSY, kvf_reserve(other, region, one, 1, &error));
    EXPECT(KVF_SLOT_NOT_RESERVED, kvf_seal(other, region, one, &hash, NULL, &error));
    EXPECT(KVF_OK, kvf_abort(agent, region, one, 1, &error));
    EXPECT(KVF_OK, kvf_reserve(agent, region, one, 1, &error));
    EXPECT(KVF_OK, kvf_seal(agent, region, one, &hash, NULL, &error));

    kvf_pinned pinned;
    uint64_t pin;
    EXPECT(KVF_OK, kvf_pin(agent, space->name, &hash, 0, &pinned, &pin, &error));
    CHECK(pinned.pinned && pinned.region == region && pinned.slot == 5);
    EXPECT(KVF_SLOT_BUSY, kvf_reserve(agent, region, one, 1, &error));
    EXPECT(KVF_OK, kvf_release(agent, pin, &error));
    EXPECT(KVF_OK, kvf_reserve(agent, region, one, 1, &error));

    /* The other region is the pool that the put had to make. */
    kvf_region_stats all[3];
    size_t regions;
    EXPECT(KVF_OK, kvf_stats_regions(agent, NULL, 0, &regions, &error));
    CHECK(regions == 2);
    EXPECT(KVF_OK, kvf_stats_regions(agent, all, 3, &regions, &error));
    const kvf_region_stats *stats = all[0].pool ? &all[1] : &all[0];
    CHECK(stats->region == region && stats->reserved == 1 && stats->free == SLOTS - 1);
    uint64_t removed = 9;
    EXPECT(KVF_OK, kvf_unregister(agent, region, &removed, &error));
    CHECK(removed == 0);
    EXPECT(KVF_REGION_UNKNOWN, kvf_unregister(agent, region, NULL, &error));
    kvf_region description;
    EXPECT(KVF_REGION_UNKNOWN, kvf_region_describe(agent, region, &description, &error));
    kvf_region_map map;
    EXPECT(KVF_REGION_UNKNOWN, kvf_region_open(agent, region, 0, &map, &error));
    munmap(memory, SLOTS * BLOCK);
}

static void gpu(kvf_agent *agent) {
    kvf_error error;
    kvf_namespace space = space_of("a-gpu");
    kvf_plane plane = {.base = 0, .stride = BLOCK, .len = BLOCK};
    kvf_geometry geometry = {.planes = &plane, .plane_count = 1, .slots = SLOTS};
    kvf_region region;
    kvf_cuda_ipc nowhere = {.length = SLOTS * BLOCK}; /* nobody's device */
    EXPECT(KVF_GPU_UNAVAILABLE, kvf_register_cuda_ipc(agent, &space, &nowhere, &geometry, 0, &region, &error));
    EXPECT(KVF_INVALID_ARGUMENT,
           kvf_register_cuda_ipc(agent, &space, &nowhere, &geometry, KVF_KEEP_ON_DISCONNECT, &region, &error));
}

static void pool(kvf_agent *agent) {
    kvf_error error;
    kvf_namespace space = space_of("a-pool");
    kvf_region region;
    EXPECT(KVF_OK, kvf_register_pool(agent, &space, 4 * BLOCK, 0, &region, &error));
    CHECK(region.pool && region.slots == 4 && region.first_plane.len == BLOCK && region.fingerprint[0] != 0);
    EXPECT(KVF_POOL_EXISTS, kvf_register_pool(agent, &space, 4 * BLOCK, 0, &region, &error));
    uint32_t slots[4];
    EXPECT(KVF_OK, kvf_reserve_pool(agent, region.region, slots, 4, &error));
    EXPECT(KVF_POOL_FULL, kvf_reserve_pool(agent, region.region, slots, 1, &error));
    kvf_region_map map;
    EXPECT(KVF_OK, kvf_region_open(agent, region.region, 1, &map, &error));
    uint8_t *memory = mmap(NULL, map.data_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, map.data, 0);
    CHECK(memory != MAP_FAILED && map.slots == 4);
    CHECK(mmap(NULL, 32, PROT_READ | PROT_WRITE, MAP_SHARED, map.generations, 0) == MAP_FAILED);
    uint64_t *words = mmap(NULL, 32, PROT_READ, MAP_SHARED, map.generations, 0);
    CHECK(words != MAP_FAILED && words[slots[0]] % 2 == 1);
    memset(memory + region.first_plane.base + slots[0] * region.first_plane.stride, 7, BLOCK);
    uint8_t bytes[HASH];
    hash_them(bytes, 1, 1);
    kvf_hashes hash = {.bytes = bytes, .hash_len = HASH, .count = 1};
    EXPECT(KVF_OK, kvf_seal(agent, region.region, slots, &hash, NULL, &error));
    CHECK(words[slots[0]] % 2 == 0);
    /* A second copy of the block is not kept. */
    uint32_t duplicates[1] = {99};
    kvf_sealed sealed = {.size = sizeof sealed, .duplicates = duplicates};
    EXPECT(KVF_OK, kvf_seal(agent, region.region, slots + 1, &hash, &sealed, &error));
    CHECK(sealed.duplicate_count == 1 && duplicates[0] == slots[1]);
    munmap(memory, map.data_bytes);
    munmap(words, 32);
    close(map.data);
    close(map.generations);
}

int main(int argc, char **argv) {
    CHECK(argc == 3 && kvf_abi_version() == KVF_ABI_VERSION && kvf_version()[0] != 0);
    kvf_error error;
    kvf_agent *a = connect_with(argv[1], 0), *b = connect_with(argv[2], 0);
    null_and_nonsense(a);
    kvf_namespace space = space_of("refusals");
    uint8_t *memory;
    region_of(b, &space, &memory);
    hashes_and_flags(a, &space);
    kvf_agent *other_engine = connect_with(argv[1], 0);
    slots(a, other_engine, &space);
    EXPECT(KVF_OK, kvf_close(other_engine, &error));
    gpu(a);
    pool(a);
    /* Another layout under a name that is in use. */
    kvf_namespace other = space;
    other.dtype = "bf16";
    kvf_region region;
    EXPECT(KVF_NAMESPACE_MISMATCH, kvf_register_pool(a, &other, 0, 0, &region, &error));
    EXPECT(KVF_OK, kvf_close(a, &error));
    EXPECT(KVF_OK, kvf_close(b, &error));
    munmap(memory, SLOTS * BLOCK);
    return 0;
}
