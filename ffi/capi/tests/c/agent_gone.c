/* agent_gone SOCKET_A SOCKET_B PID_A PID_B: an agent that stops, and one that dies. Calls end by their
 * deadline; a connection that is gone is said to be gone, for good. */
#include "check.h"

int main(int argc, char **argv) {
    CHECK(argc == 5);
    pid_t owner = (pid_t)atoi(argv[3]), mine = (pid_t)atoi(argv[4]);
    kvf_error error;
    kvf_agent *a = connect_with(argv[1], 0), *b = connect_with(argv[2], 3000);
    kvf_namespace space = space_of("gone");
    uint8_t *from, *to, hashes[SLOTS * HASH];
    uint32_t region_a = region_of(a, &space, &from), region_b = region_of(b, &space, &to), slots[SLOTS];
    publish(a, region_a, from, 1, 8);
    hash_them(hashes, 1, 8);
    slots_from(slots, 0, 8);

    /* Stopped: it may or may not have done what it was asked. */
    stop(mine);
    EXPECT(KVF_DEADLINE, kvf_reserve(b, region_b, slots, 8, &error));
    kvf_pull_request request = pull_of(space.name, hashes, 8);
    request.slots = slots;
    request.region = region_b;
    request.timeout_ms = 500;
    kvf_pull *pull;
    EXPECT(KVF_OK, kvf_pull_start(b, &request, &pull, &error));
    EXPECT(KVF_DEADLINE, kvf_pull_wait(pull, 120000, &error));
    all_are(pull, 8, KVF_OUTCOME_TIMED_OUT);
    kvf_pull_free(pull);
    CHECK(kill(mine, SIGCONT) == 0);

    /* Dead, with a pull under way. */
    stop(owner);
    request.slots = NULL;
    request.timeout_ms = 120000;
    EXPECT(KVF_OK, kvf_pull_start(b, &request, &pull, &error));
    EXPECT(KVF_NOT_DONE, kvf_pull_wait(pull, 300, &error));
    CHECK(kill(mine, SIGKILL) == 0);
    EXPECT(KVF_AGENT_LOST, kvf_pull_wait(pull, 120000, &error));
    all_are(pull, 8, KVF_OUTCOME_AGENT_LOST);
    for (int i = 0; i < 3; i++) {
        EXPECT(KVF_AGENT_LOST, kvf_reserve(b, region_b, slots, 8, &error));
        CHECK(strstr(error.message, "agent b") != NULL);
    }
    kvf_pull *late;
    EXPECT(KVF_OK, kvf_pull_start(b, &request, &late, &error));
    EXPECT(KVF_AGENT_LOST, kvf_pull_wait(late, 120000, &error));
    all_are(late, 8, KVF_OUTCOME_AGENT_LOST);
    uint8_t block[BLOCK] = {0};
    kvf_hashes one = {.bytes = hashes, .hash_len = HASH, .count = 1};
    EXPECT(KVF_AGENT_LOST, kvf_put(b, space.name, &one, block, BLOCK, 0, NULL, 0, 0, NULL, &error));
    EXPECT(KVF_OK, kvf_close(b, &error));
    kvf_pull_free(late);
    kvf_pull_free(pull);
    CHECK(kill(owner, SIGCONT) == 0);
    EXPECT(KVF_OK, kvf_close(a, &error));
    munmap(from, SLOTS * BLOCK);
    munmap(to, SLOTS * BLOCK);
    return 0;
}
