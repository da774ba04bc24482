/* threads SOCKET_A SOCKET_B: one handle, many threads, everything at once. */
#include "check.h"

enum { THREADS = 8, ROUNDS = 20, EACH = SLOTS / THREADS };

static kvf_agent *a, *b;
static uint32_t region_b;
static uint8_t *to;

static void *work(void *argument) {
    uint32_t me = (uint32_t)(uintptr_t)argument;
    kvf_error error;
    uint8_t hashes[EACH * HASH], block[BLOCK];
    uint32_t slots[EACH];
    slots_from(slots, me * EACH, EACH);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint32_t first = (round * THREADS + me) * EACH;
        hash_them(hashes, first, EACH);
        kvf_hashes packed = {.bytes = hashes, .hash_len = HASH, .count = EACH};
        for (uint32_t i = 0; i < EACH; i++) {
            kvf_hashes one = {.bytes = hashes + i * HASH, .hash_len = HASH, .count = 1};
            memset(block, (int)(first + i), BLOCK);
            EXPECT(KVF_OK, kvf_put(a, "threads", &one, block, BLOCK, 0, NULL, 0, i + 1 == EACH ? 60000 : 0, NULL, &error));
        }
        kvf_pull_request request = pull_of("threads", hashes, EACH);
        request.slots = slots;
        request.region = region_b;
        request.flags = KVF_NO_REPLICA;
        kvf_pull *pull;
        EXPECT(KVF_OK, kvf_pull_start(b, &request, &pull, &error));
        EXPECT(KVF_OK, kvf_pull_wait(pull, 120000, &error));
        all_are(pull, EACH, KVF_OUTCOME_PULLED);
        kvf_pull_free(pull);
        for (uint32_t i = 0; i < EACH; i++) {
            CHECK(to[slots[i] * BLOCK] == (uint8_t)(first + i) && to[(slots[i] + 1) * BLOCK - 1] == (uint8_t)(first + i));
        }
        kvf_place places[EACH];
        size_t answered;
        EXPECT(KVF_OK, kvf_lookup(a, "threads", &packed, 1, 60000, places, &answered, &error));
        CHECK(answered == EACH && places[0] == KVF_PLACE_LOCAL);
    }
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    kvf_error error;
    a = connect_with(argv[1], 60000);
    b = connect_with(argv[2], 60000);
    kvf_namespace space = space_of("threads");
    kvf_region pool;
    EXPECT(KVF_OK, kvf_register_pool(a, &space, THREADS * ROUNDS * EACH * BLOCK, 0, &pool, &error));
    region_b = region_of(b, &space, &to);
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    EXPECT(KVF_OK, kvf_close(a, &error));
    EXPECT(KVF_OK, kvf_close(b, &error));
    munmap(to, SLOTS * BLOCK);
    return 0;
}
