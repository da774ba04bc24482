/* pulls SOCKET_A SOCKET_B PID_A PID_B: every block has exactly one outcome, whatever is done to the pull. */
#include "check.h"

#include <poll.h>

static uint8_t hashes[SLOTS * HASH];
static uint32_t slots[SLOTS];

/* What a callback saw. */
struct seen {
    kvf_agent *agent;
    pthread_mutex_t lock;
    int calls, done, free_it, busy_ms;
};

static void on_news(kvf_pull *pull, int32_t done, void *user) {
    struct seen *seen = user;
    kvf_error error;
    kvf_stats stats = {.size = sizeof stats};
    /* Anything that waits may be called here, but not the end of everything. */
    if (seen->agent != NULL) {
        EXPECT(KVF_OK, kvf_stats_get(seen->agent, &stats, &error));
        EXPECT(KVF_WRONG_THREAD, kvf_close(seen->agent, &error));
    }
    usleep((useconds_t)seen->busy_ms * 1000);
    pthread_mutex_lock(&seen->lock);
    seen->calls += 1;
    CHECK(seen->done == 0);
    seen->done += done;
    pthread_mutex_unlock(&seen->lock);
    if (done && seen->free_it) kvf_pull_free(pull);
}

static int is_done(struct seen *seen) {
    pthread_mutex_lock(&seen->lock);
    int done = seen->done;
    pthread_mutex_unlock(&seen->lock);
    return done;
}

static void until_done(struct seen *seen) {
    for (double began = now(); !is_done(seen); usleep(1000)) CHECK(now() - began < PATIENCE);
    usleep(20000);
    CHECK(is_done(seen) == 1); /* and not again */
}

static int readable(kvf_pull *pull) {
    kvf_error error;
    int event;
    EXPECT(KVF_OK, kvf_pull_eventfd(pull, &event, &error));
    struct pollfd ready = {.fd = event, .events = POLLIN};
    return poll(&ready, 1, 0) == 1;
}

static void ends_well(kvf_agent *b, uint32_t region, const uint8_t *memory) {
    kvf_error error;
    struct seen seen = {.agent = b, .lock = PTHREAD_MUTEX_INITIALIZER};
    kvf_pull_request request = pull_of("pulls", hashes, SLOTS);
    request.slots = slots;
    request.region = region;
    request.callback = on_news;
    request.user = &seen;
    kvf_pull *pull;
    EXPECT(KVF_OK, kvf_pull_start(b, &request, &pull, &error));
    EXPECT(KVF_OK, kvf_pull_wait(pull, 120000, &error));
    CHECK(readable(pull));
    all_are(pull, SLOTS, KVF_OUTCOME_PULLED);
    CHECK(!readable(pull)); /* all was said */
    for (uint32_t i = 0; i < SLOTS; i++) CHECK(memory[i * BLOCK] == (uint8_t)(100 + i));
    kvf_pull_summary summary = {.size = sizeof summary};
    EXPECT(KVF_OK, kvf_pull_summary_of(pull, &summary, &error));
    CHECK(summary.pulled == SLOTS && summary.bytes == SLOTS * BLOCK && summary.pin == 0);
    until_done(&seen);
    EXPECT(KVF_OK, kvf_pull_cancel(pull, &error)); /* too late to matter */
    EXPECT(KVF_OK, kvf_pull_wait(pull, 0, &error));
    kvf_pull_free(pull);
}

static void is_refused(kvf_agent *b, uint32_t region) {
    kvf_error error;
    kvf_pull_request request = pull_of("pulls", hashes, 8);
    request.slots = slots;
    request.region = region + 100;
    kvf_pull *pull;
    EXPECT(KVF_OK, kvf_pull_start(b, &request, &pull, &error));
    EXPECT(KVF_REGION_UNKNOWN, kvf_pull_wait(pull, 120000, &error));
    all_are(pull, 8, KVF_OUTCOME_REFUSED);
    kvf_pull_summary summary = {.size = sizeof summary};
    EXPECT(KVF_REGION_UNKNOWN, kvf_pull_summary_of(pull, &summary, &error));
    kvf_pull_free(pull);
}

static void finds_nothing(kvf_agent *b) {
    kvf_error error;
    uint8_t others[8 * HASH];
    hash_them(others, 9000, 8);
    struct seen seen = {.lock = PTHREAD_MUTEX_INITIALIZER, .free_it = 1};
    kvf_pull_request request = pull_of("pulls", others, 8);
    kvf_pull *pull;
    EXPECT(KVF_OK, kvf_pull_start(b, &request, &pull, &error));
    EXPECT(KVF_OK, kvf_pull_wait(pull, 120000, &error));
    all_are(pull, 8, KVF_OUTCOME_MISSING);
    kvf_pull_free(pull);
    /* No hashes at all: ended, with nothing. And freed by its own callback. */
    request.hashes.count = 0;
    request.callback = on_news;
    request.user = &seen;
    EXPECT(KVF_OK, kvf_pull_start(b, &request, &pull, &error));
    until_done(&seen);
}

/* The owner is stopped: a pull stays under way until it is given up. */
static void given_up(kvf_agent *b, uint32_t region, pid_t owner) {
    kvf_error error;
    kvf_pull *pull;
    struct seen seen = {.agent = b, .lock = PTHREAD_MUTEX_INITIALIZER};
    kvf_pull_request request = pull_of("pulls", hashes, 8);
    request.slots = slots;
    request.region = region;
    request.callback = on_news;
    request.user = &seen;
    stop(owner);
    EXPECT(KVF_OK, kvf_pull_start(b, &request, &pull, &error));
    EXPECT(KVF_NOT_DONE, kvf_pull_wait(pull, 100, &error));
    EXPECT(KVF_OK, kvf_pull_cancel(pull, &error));
    EXPECT(KVF_CANCELLED, kvf_pull_wait(pull, 120000, &error));
    until_done(&seen);
    all_are(pull, 8, KVF_OUTCOME_CANCELLED);
    kvf_pull_free(pull);
    CHECK(kill(owner, SIGCONT) == 0);

    /* What was given up can be reserved again, soon. */
    kvf_status status;
    double began;
    for (began = now(); (status = kvf_reserve(b, region, slots, 8, &error)) == KVF_SLOT_BUSY; usleep(10000)) {
        CHECK(now() - began < PATIENCE);
    }
    EXPECT(KVF_OK, status);
}

/* The agent itself is stopped: nothing comes from it, and what ends a pull is said here. */
static void ended_here(kvf_agent *b, const char *socket_b, pid_t agent) {
    kvf_error error;
    kvf_pull *freed, *closed;
    struct seen never = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct seen last = {.lock = PTHREAD_MUTEX_INITIALIZER, .busy_ms = 50};
    kvf_pull_request request = pull_of("pulls", hashes, 8);
    request.callback = on_news;
    kvf_agent *other = connect_with(socket_b, 0);
    stop(agent);

    /* Freed while it is under way: its callback is not called any more. */
    request.user = &never;
    EXPECT(KVF_OK, kvf_pull_start(b, &request, &freed, &error));
    EXPECT(KVF_NOT_DONE, kvf_pull_wait(freed, 50, &error));
    kvf_pull_free(freed);
    usleep(100000);
    CHECK(never.calls == 0 && never.done == 0);

    /* Its handle closed while it is under way: it ends, says so, and can still be asked. */
    request.user = &last;
    EXPECT(KVF_OK, kvf_pull_start(other, &request, &closed, &error));
    EXPECT(KVF_NOT_DONE, kvf_pull_wait(closed, 50, &error));
    EXPECT(KVF_OK, kvf_close(other, &error)); /* although the agent says nothing */
    CHECK(last.calls == 1 && last.done == 1);
    EXPECT(KVF_CANCELLED, kvf_pull_wait(closed, 0, &error));
    all_are(closed, 8, KVF_OUTCOME_CANCELLED);
    kvf_pull_free(closed);
    CHECK(kill(agent, SIGCONT) == 0);
}

int main(int argc, char **argv) {
    CHECK(argc == 5);
    kvf_error error;
    kvf_agent *a = connect_with(argv[1], 0), *b = connect_with(argv[2], 0);
    kvf_namespace space = space_of("pulls");
    uint8_t *from, *to;
    uint32_t region_a = region_of(a, &space, &from), region_b = region_of(b, &space, &to);
    hash_them(hashes, 100, SLOTS);
    slots_from(slots, 0, SLOTS);
    publish(a, region_a, from, 100, SLOTS);
    ends_well(b, region_b, to);
    is_refused(b, region_b);
    finds_nothing(b);
    /* What was pulled is a replica here: away with it, or nothing needs to be pulled. */
    EXPECT(KVF_OK, kvf_evict(b, space.name, NULL, NULL, &error));
    given_up(b, region_b, (pid_t)atoi(argv[3]));
    ended_here(b, argv[2], (pid_t)atoi(argv[4]));
    EXPECT(KVF_OK, kvf_close(b, &error));
    EXPECT(KVF_OK, kvf_close(a, &error));
    munmap(from, SLOTS * BLOCK);
    munmap(to, SLOTS * BLOCK);
    return 0;
}
