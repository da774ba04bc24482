/* Publishes blocks from one agent's engine and pulls them on another's, into memory of its own.
 *
 *   publish_and_pull SOCKET_A SOCKET_B
 *
 * Memory of A is a memfd, handed over by descriptor; memory of B is a file in /dev/shm, named by its path. The
 * end of the pull is waited for with poll(), as an engine's event loop would. */
#define _GNU_SOURCE
#include <kvferry.h>

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { BLOCKS = 64, PLANES = 4, PLANE_BYTES = 4096, HASH = 32, BYTES = BLOCKS * PLANES * PLANE_BYTES };

static void check(kvf_status status, const kvf_error *error, const char *what) {
    if (status != KVF_OK) {
        fprintf(stderr, "%s: %s: %s\n", what, kvf_status_text(status), error->message);
        exit(1);
    }
}

static void system_check(int ok, const char *what) {
    if (!ok) {
        perror(what);
        exit(1);
    }
}

static kvf_agent *connect_to(const char *socket) {
    kvf_error error;
    kvf_agent *agent = NULL;
    kvf_options options;
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.socket = socket;
    check(kvf_open(&options, &agent, &error), &error, socket);
    return agent;
}

/* Byte `at` of block `block`: nothing repeats within or between blocks. */
static uint8_t content(uint32_t block, size_t at) {
    uint32_t mixed = (block + 1) * 2654435761u ^ (uint32_t)(at + 1) * 2246822519u;
    return (uint8_t)(mixed >> 13);
}

/* The memory's layout: plane after plane, each with all slots. */
static uint8_t *place(uint8_t *memory, uint32_t slot, size_t at) {
    return memory + (at / PLANE_BYTES * BLOCKS + slot) * PLANE_BYTES + at % PLANE_BYTES;
}

int main(int argc, char **argv) {
    if (argc != 3 || kvf_abi_version() != KVF_ABI_VERSION) {
        fprintf(stderr, "usage: %s SOCKET_A SOCKET_B (library %s)\n", argv[0], kvf_version());
        return 2;
    }
    kvf_error error;
    kvf_agent *a = connect_to(argv[1]), *b = connect_to(argv[2]);

    kvf_namespace space;
    memset(&space, 0, sizeof space);
    space.size = sizeof space;
    space.name = "example-c";
    space.dtype = "bf16";
    space.tokens_per_block = 16;
    space.plane_count = PLANES;
    space.plane_bytes = PLANE_BYTES;
    space.hash_len = HASH;
    space.checksum = KVF_CHECKSUM_ALWAYS;
    kvf_plane planes[PLANES];
    for (uint64_t i = 0; i < PLANES; i++) {
        planes[i] = (kvf_plane){.base = i * BLOCKS * PLANE_BYTES, .stride = PLANE_BYTES, .len = PLANE_BYTES};
    }
    kvf_geometry geometry = {.planes = planes, .plane_count = PLANES, .slots = BLOCKS};

    /* A's memory has no name: its descriptor is handed to the agent. */
    int memfd = memfd_create("engine-a", MFD_CLOEXEC);
    system_check(memfd >= 0 && ftruncate(memfd, BYTES) == 0, "memfd");
    uint8_t *from = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    system_check(from != MAP_FAILED, "mmap");
    kvf_region region_a;
    check(kvf_register_fd(a, &space, memfd, &geometry, 0, &region_a, &error), &error, "register A");

    /* B's memory is a file. */
    char path[64];
    snprintf(path, sizeof path, "/dev/shm/kvferry-example-%ld", (long)getpid());
    int file = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    system_check(file >= 0 && ftruncate(file, BYTES) == 0, path);
    uint8_t *to = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    system_check(to != MAP_FAILED, "mmap");
    kvf_region region_b;
    kvf_status registered = kvf_register_path(b, &space, path, &geometry, 0, &region_b, &error);
    unlink(path); /* the agent has it open */
    check(registered, &error, "register B");

    /* Publish: reserve, write, seal. */
    static uint8_t hashes[BLOCKS][HASH];
    uint32_t slots[BLOCKS];
    for (uint32_t i = 0; i < BLOCKS; i++) {
        slots[i] = i;
        for (size_t at = 0; at < HASH; at++) {
            hashes[i][at] = content(i + 1000, at);
        }
    }
    check(kvf_reserve(a, region_a.region, slots, BLOCKS, &error), &error, "reserve");
    for (uint32_t i = 0; i < BLOCKS; i++) {
        for (size_t at = 0; at < PLANES * PLANE_BYTES; at++) {
            *place(from, i, at) = content(i, at);
        }
    }
    kvf_hashes wanted = {.bytes = &hashes[0][0], .hash_len = HASH, .count = BLOCKS};
    kvf_sealed sealed;
    memset(&sealed, 0, sizeof sealed);
    sealed.size = sizeof sealed;
    sealed.wait_announced_ms = 10000;
    sealed.flags = KVF_CHAINED;
    check(kvf_seal(a, region_a.region, slots, &wanted, &sealed, &error), &error, "seal");
    if (!sealed.announced) {
        fprintf(stderr, "the coordinator has not confirmed in time\n");
        return 1;
    }

    /* Pull, and wait as an event loop does. */
    kvf_pull_request request;
    memset(&request, 0, sizeof request);
    request.size = sizeof request;
    request.namespace_name = space.name;
    request.hashes = wanted;
    request.slots = slots;
    request.region = region_b.region;
    request.timeout_ms = 60000;
    kvf_pull *pull = NULL;
    check(kvf_pull_start(b, &request, &pull, &error), &error, "pull");
    int event = -1, done = 0;
    check(kvf_pull_eventfd(pull, &event, &error), &error, "eventfd");
    uint32_t pulled = 0;
    while (!done) {
        struct pollfd ready = {.fd = event, .events = POLLIN};
        system_check(poll(&ready, 1, 30000) == 1, "poll");
        kvf_outcome outcomes[16];
        size_t given = 0;
        check(kvf_pull_poll(pull, outcomes, 16, &given, &done, &error), &error, "poll");
        for (size_t i = 0; i < given; i++) {
            const kvf_outcome *it = &outcomes[i];
            if (it->kind != KVF_OUTCOME_PULLED || !it->settled) {
                fprintf(stderr, "block %u: kind %d: %s\n", it->index, (int)it->kind, it->detail);
                return 1;
            }
            for (size_t at = 0; at < PLANES * PLANE_BYTES; at++) {
                if (*place(to, it->slot, at) != content(it->index, at)) {
                    fprintf(stderr, "block %u: byte %zu differs\n", it->index, at);
                    return 1;
                }
            }
            if (pulled++ == 0) {
                printf("first block from %s by %s\n", it->source_node, it->transport);
            }
        }
    }
    check(kvf_pull_wait(pull, 0, &error), &error, "pull");
    kvf_pull_free(pull);

    check(kvf_unregister(b, region_b.region, NULL, &error), &error, "unregister B");
    check(kvf_close(b, &error), &error, "close B");
    check(kvf_close(a, &error), &error, "close A");
    munmap(from, BYTES);
    munmap(to, BYTES);
    close(memfd);
    close(file);
    printf("%u blocks, every byte as published\n", pulled);
    return pulled == BLOCKS ? 0 : 1;
}
