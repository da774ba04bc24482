/* What the test programs share: checks that say where they failed, and a small namespace. */
#ifndef CHECK_H
#define CHECK_H
#define _GNU_SOURCE
#include <kvferry.h>

#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, HASH = 32, SLOTS = 64, MAX_PLANES = 4 };

/* Seconds that nothing takes which ever ends, on any machine. */
enum { PATIENCE = 90 };

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                                   \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* A call gives this status, and the error says the same. `said` is `&error`. */
#define EXPECT(want, call)                                                                                             \
    do {                                                                                                               \
        kvf_status got = (call);                                                                                       \
        if (got != (want) || error.status != got || (error.message[0] == 0) != (got == KVF_OK)) {                      \
            fprintf(stderr, "%s:%d: %s: %s, not %s: %s\n", __FILE__, __LINE__, #call, kvf_status_text(got), #want,     \
                    error.message);                                                                                    \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static inline double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* Whether all threads of a process stand still. */
static inline bool stands_still(pid_t process) {
    char path[320], line[512];
    snprintf(path, sizeof path, "/proc/%d/task", (int)process);
    DIR *threads = opendir(path);
    CHECK(threads != NULL);
    bool still = true;
    for (struct dirent *thread; still && (thread = readdir(threads)) != NULL;) {
        if (thread->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "/proc/%d/task/%s/stat", (int)process, thread->d_name);
        FILE *file = fopen(path, "r");
        if (file == NULL) continue; /* it has ended */
        const char *state = fgets(line, sizeof line, file) == NULL ? NULL : strrchr(line, ')');
        still = state == NULL || state[2] == 'T';
        fclose(file);
    }
    closedir(threads);
    return still;
}

/* Stops a process, and waits until all of it has stopped. */
static inline void stop(pid_t process) {
    CHECK(kill(process, SIGSTOP) == 0);
    for (double began = now(); !stands_still(process); usleep(1000)) CHECK(now() - began < PATIENCE);
}

static inline kvf_agent *connect_with(const char *socket, uint32_t call_timeout_ms) {
    kvf_error error;
    kvf_options options = {.size = sizeof options, .socket = socket, .call_timeout_ms = call_timeout_ms};
    kvf_agent *agent = NULL;
    EXPECT(KVF_OK, kvf_open(&options, &agent, &error));
    return agent;
}

static inline kvf_namespace space_of(const char *name) {
    return (kvf_namespace){.size = sizeof(kvf_namespace),
                           .name = name,
                           .dtype = "u8",
                           .tokens_per_block = 16,
                           .plane_count = 1,
                           .plane_bytes = BLOCK,
                           .hash_len = HASH,
                           .checksum = KVF_CHECKSUM_ALWAYS};
}

/* An engine's memory of SLOTS slots, the planes of each one after the other. */
static inline uint32_t region_of(kvf_agent *agent, const kvf_namespace *space, uint8_t **memory) {
    kvf_error error;
    int memfd = memfd_create("test", MFD_CLOEXEC);
    CHECK(memfd >= 0 && ftruncate(memfd, SLOTS * BLOCK) == 0);
    *memory = mmap(NULL, SLOTS * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    CHECK(*memory != MAP_FAILED);
    kvf_plane planes[MAX_PLANES];
    CHECK(space->plane_count <= MAX_PLANES && space->plane_count * space->plane_bytes == BLOCK);
    for (uint32_t i = 0; i < space->plane_count; i++) {
        planes[i] = (kvf_plane){.base = i * space->plane_bytes, .stride = BLOCK, .len = space->plane_bytes};
    }
    kvf_geometry geometry = {.planes = planes, .plane_count = space->plane_count, .slots = SLOTS};
    kvf_region region;
    EXPECT(KVF_OK, kvf_register_fd(agent, space, memfd, &geometry, 0, &region, &error));
    CHECK(region.slots == SLOTS && !region.pool && region.plane_count == space->plane_count);
    close(memfd);
    return region.region;
}

/* Hashes `first`, `first` + 1, ... of a test. */
static inline void hash_them(uint8_t *hashes, uint32_t first, uint32_t count) {
    memset(hashes, 0, (size_t)count * HASH);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t number = first + i;
        memcpy(hashes + (size_t)i * HASH, &number, sizeof number);
    }
}

static inline void slots_from(uint32_t *slots, uint32_t first, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) slots[i] = first + i;
}

/* Publishes blocks first.. in slots 0..count; each filled with its number. */
static inline void publish(kvf_agent *agent, uint32_t region, uint8_t *memory, uint32_t first, uint32_t count) {
    kvf_error error;
    uint8_t hashes[SLOTS * HASH];
    uint32_t slots[SLOTS];
    hash_them(hashes, first, count);
    slots_from(slots, 0, count);
    EXPECT(KVF_OK, kvf_reserve(agent, region, slots, count, &error));
    for (uint32_t i = 0; i < count; i++) memset(memory + (size_t)i * BLOCK, (int)(first + i), BLOCK);
    kvf_hashes packed = {.bytes = hashes, .hash_len = HASH, .count = count};
    uint64_t generations[SLOTS];
    kvf_sealed sealed = {.size = sizeof sealed, .wait_announced_ms = 60000, .generations = generations};
    EXPECT(KVF_OK, kvf_seal(agent, region, slots, &packed, &sealed, &error));
    CHECK(sealed.announced == 1 && sealed.duplicate_count == 0);
    for (uint32_t i = 0; i < count; i++) CHECK(generations[i] > 0 && generations[i] % 2 == 0);
}

static inline kvf_pull_request pull_of(const char *space, const uint8_t *hashes, uint32_t count) {
    return (kvf_pull_request){.size = sizeof(kvf_pull_request),
                              .namespace_name = space,
                              .hashes = {.bytes = hashes, .hash_len = HASH, .count = count},
                              .timeout_ms = 120000};
}

/* The pull has ended, and each of its blocks has exactly this outcome. */
static inline void all_are(kvf_pull *pull, uint32_t count, kvf_outcome_kind kind) {
    kvf_error error;
    bool seen[SLOTS] = {false};
    size_t total = 0;
    int done = 0;
    while (!done) {
        kvf_outcome some[7];
        size_t given = 99;
        EXPECT(KVF_OK, kvf_pull_poll(pull, some, 7, &given, &done, &error));
        CHECK(done || given > 0);
        for (size_t i = 0; i < given; i++) {
            CHECK(some[i].index < count && !seen[some[i].index]);
            if (some[i].kind != kind) fprintf(stderr, "kind %d: %s\n", (int)some[i].kind, some[i].detail);
            CHECK(some[i].kind == kind);
            CHECK((some[i].detail[0] == 0) == (kind == KVF_OUTCOME_PULLED || kind == KVF_OUTCOME_LOCAL));
            seen[some[i].index] = true;
        }
        total += given;
    }
    CHECK(total == count);
}

#endif
