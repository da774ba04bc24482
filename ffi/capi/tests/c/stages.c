/* stages SOCKET_A SOCKET_B PID_A: a pull delivered layer by layer. */
#include "check.h"

#include <poll.h>
#include <stddef.h>

static uint8_t hashes[SLOTS * HASH];
static uint32_t slots[SLOTS];
/* Planes of each stage. */
static const uint32_t stages[] = {1, 2, 1};
enum { STAGES = 3, PLANE = BLOCK / MAX_PLANES };

static kvf_pull_request staged(uint32_t region) {
    kvf_pull_request request = pull_of("stages", hashes, SLOTS);
    request.slots = slots;
    request.region = region;
    request.stages = stages;
    request.stage_count = STAGES;
    return request;
}

static int readable(int event) {
    struct pollfd ready = {.fd = event, .events = POLLIN};
    return poll(&ready, 1, 0) == 1;
}

static void ends(kvf_pull *pull, kvf_status how) {
    kvf_error error;
    EXPECT(how, kvf_pull_wait(pull, 20000, &error));
    all_are(pull, SLOTS, how == KVF_OK ? KVF_OUTCOME_PULLED : how == KVF_CANCELLED ? KVF_OUTCOME_CANCELLED : KVF_OUTCOME_REFUSED);
    kvf_pull_free(pull);
}

/* Whatever is told is there. */
static void comes_in_order(kvf_agent *b, uint32_t region, const uint8_t *memory) {
    kvf_error error;
    kvf_pull_request request = staged(region);
    kvf_pull *pull;
    EXPECT(KVF_OK, kvf_pull_start(b, &request, &pull, &error));
    uint32_t planes = 0, landed;
    for (uint32_t stage = 1; stage <= STAGES; stage++) {
        EXPECT(KVF_OK, kvf_pull_wait_stages(pull, stage, 20000, &error));
        EXPECT(KVF_OK, kvf_pull_stages_landed(pull, &landed, &error));
        CHECK(landed >= stage && landed <= STAGES);
        planes += stages[stage - 1];
        for (uint32_t i = 0; i < SLOTS; i++) {
            for (uint32_t at = 0; at < planes * PLANE; at++) CHECK(memory[i * BLOCK + at] == (uint8_t)(100 + i));
        }
    }
    ends(pull, KVF_OK);
}

/* A loop that waits for the descriptor hears of every stage, also of those that come without an outcome. */
static void is_told_by_the_eventfd(kvf_agent *b, uint32_t region) {
    kvf_error error;
    kvf_pull_request request = staged(region);
    kvf_pull *pull;
    int event, done = 0;
    EXPECT(KVF_OK, kvf_pull_start(b, &request, &pull, &error));
    EXPECT(KVF_OK, kvf_pull_eventfd(pull, &event, &error));
    uint32_t landed = 0;
    size_t total = 0;
    while (!done) {
        struct pollfd ready = {.fd = event, .events = POLLIN};
        CHECK(poll(&ready, 1, 20000) == 1);
        uint32_t before = landed;
        kvf_outcome some[SLOTS];
        size_t given;
        EXPECT(KVF_OK, kvf_pull_stages_landed(pull, &landed, &error));
        CHECK(landed >= before);
        EXPECT(KVF_OK, kvf_pull_poll(pull, some, SLOTS, &given, &done, &error));
        total += given;
    }
    EXPECT(KVF_OK, kvf_pull_stages_landed(pull, &landed, &error));
    CHECK(total == SLOTS && landed == STAGES && !readable(event));
    kvf_pull_free(pull);
}

/* The owner is stopped: no stage comes, and one who waits hears why none will. */
static void given_up(kvf_agent *b, uint32_t region, pid_t owner) {
    kvf_error error;
    kvf_pull_request request = staged(region);
    kvf_pull *pull;
    uint32_t landed = 9;
    stop(owner);
    EXPECT(KVF_OK, kvf_pull_start(b, &request, &pull, &error));
    EXPECT(KVF_NOT_DONE, kvf_pull_wait_stages(pull, 1, 100, &error));
    EXPECT(KVF_OK, kvf_pull_wait_stages(pull, 0, 0, &error));
    EXPECT(KVF_OK, kvf_pull_stages_landed(pull, &landed, &error));
    CHECK(landed == 0);
    EXPECT(KVF_OK, kvf_pull_cancel(pull, &error));
    EXPECT(KVF_CANCELLED, kvf_pull_wait_stages(pull, 1, 20000, &error));
    ends(pull, KVF_CANCELLED);
    CHECK(kill(owner, SIGCONT) == 0);
}

static void is_refused(kvf_agent *b, uint32_t region) {
    kvf_error error;
    kvf_pull *pull;
    kvf_pull_request request = staged(region);
    request.stage_count = 0;
    EXPECT(KVF_INVALID_ARGUMENT, kvf_pull_start(b, &request, &pull, &error));
    request = staged(region);
    request.stages = NULL;
    EXPECT(KVF_INVALID_ARGUMENT, kvf_pull_start(b, &request, &pull, &error));
    /* By the agent: too few planes, and a pool. */
    request = staged(region);
    request.stage_count = STAGES - 1;
    EXPECT(KVF_OK, kvf_pull_start(b, &request, &pull, &error));
    EXPECT(KVF_INVALID_ARGUMENT, kvf_pull_wait_stages(pull, 1, 20000, &error));
    ends(pull, KVF_INVALID_ARGUMENT);
    request = staged(region);
    request.slots = NULL;
    EXPECT(KVF_OK, kvf_pull_start(b, &request, &pull, &error));
    ends(pull, KVF_INVALID_ARGUMENT);
}

/* A program of an older header, which has no stages: what lies behind its request is none of ours. */
static void an_older_program_gets_blocks_whole(kvf_agent *b, uint32_t region) {
    kvf_error error;
    kvf_pull_request request = staged(region);
    request.size = offsetof(kvf_pull_request, stages);
    request.stage_count = 77;
    kvf_pull *pull;
    uint32_t landed = 9;
    EXPECT(KVF_OK, kvf_pull_start(b, &request, &pull, &error));
    EXPECT(KVF_OK, kvf_pull_wait_stages(pull, 1, 20000, &error)); /* its end */
    EXPECT(KVF_OK, kvf_pull_stages_landed(pull, &landed, &error));
    CHECK(landed == 0);
    ends(pull, KVF_OK);
}

int main(int argc, char **argv) {
    CHECK(argc == 4);
    kvf_error error;
    kvf_agent *a = connect_with(argv[1], 0), *b = connect_with(argv[2], 0);
    kvf_namespace space = space_of("stages");
    space.plane_count = MAX_PLANES;
    space.plane_bytes = PLANE;
    space.checksum = KVF_CHECKSUM_OFF; /* what is to be verified comes whole */
    uint8_t *from, *to;
    uint32_t region_a = region_of(a, &space, &from), region_b = region_of(b, &space, &to);
    hash_them(hashes, 100, SLOTS);
    slots_from(slots, 0, SLOTS);
    publish(a, region_a, from, 100, SLOTS);
    is_refused(b, region_b);
    comes_in_order(b, region_b, to);
    EXPECT(KVF_OK, kvf_evict(b, space.name, NULL, NULL, &error)); /* or nothing needs to be pulled */
    is_told_by_the_eventfd(b, region_b);
    EXPECT(KVF_OK, kvf_evict(b, space.name, NULL, NULL, &error));
    an_older_program_gets_blocks_whole(b, region_b);
    EXPECT(KVF_OK, kvf_evict(b, space.name, NULL, NULL, &error));
    given_up(b, region_b, (pid_t)atoi(argv[3]));
    EXPECT(KVF_OK, kvf_close(b, &error));
    EXPECT(KVF_OK, kvf_close(a, &error));
    munmap(from, SLOTS * BLOCK);
    munmap(to, SLOTS * BLOCK);
    return 0;
}
