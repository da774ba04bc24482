/* Two agents within this process: blocks are published on one and pulled by the other.
 *
 *   embedded_agents COORDINATOR_URL FOLDER
 *
 * An engine has one agent beside it, by kvf_open, or within it, by kvf_embed: everything else is the same. Two in one
 * process make no sense but in an example. */
#define _GNU_SOURCE
#include <kvferry.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { BLOCKS = 16, BLOCK_BYTES = 65536, HASH = 32, BYTES = BLOCKS * BLOCK_BYTES };

static void check(kvf_status status, const kvf_error *error, const char *what) {
    if (status != KVF_OK) {
        fprintf(stderr, "%s: %s: %s\n", what, kvf_status_text(status), error->message);
        exit(1);
    }
}

static void on_log(uint32_t level, const char *part, const char *line, void *user) {
    fprintf(stderr, "agent %s: %u %s: %s\n", (const char *)user, (unsigned)level, part, line);
}

static kvf_agent *embed(const char *coordinator, const char *folder, const char *node) {
    char socket[100];
    snprintf(socket, sizeof socket, "%s/%s.sock", folder, node);
    kvf_setting settings[] = {
        {"node", node},
        {"coordinators", coordinator},
        {"listen_peer", "127.0.0.1:0"},
        {"listen_data", "127.0.0.1:0"},
        {"listen_metrics", "off"},
        {"socket", socket},
    };
    kvf_embed_options options;
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.settings = settings;
    options.setting_count = sizeof settings / sizeof *settings;
    options.log = on_log; /* warnings and errors */
    options.log_user = (void *)(size_t)node;
    kvf_error error;
    kvf_agent *agent = NULL;
    check(kvf_embed(&options, &agent, &error), &error, node);
    kvf_addresses at;
    at.size = sizeof at;
    check(kvf_embed_addresses(agent, &at, &error), &error, node);
    printf("agent %s is here; peers read from %s\n", at.node, at.data);
    return agent;
}

/* Memory of an engine, registered with its agent. */
static uint8_t *memory_of(kvf_agent *agent, const kvf_namespace *space, uint32_t *region) {
    int memfd = memfd_create("engine", MFD_CLOEXEC);
    if (memfd < 0 || ftruncate(memfd, BYTES) != 0) {
        perror("memfd");
        exit(1);
    }
    uint8_t *memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    if (memory == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    kvf_plane plane = {.base = 0, .stride = BLOCK_BYTES, .len = BLOCK_BYTES};
    kvf_geometry geometry = {.planes = &plane, .plane_count = 1, .slots = BLOCKS};
    kvf_error error;
    kvf_region registered;
    check(kvf_register_fd(agent, space, memfd, &geometry, 0, &registered, &error), &error, "register");
    close(memfd);
    *region = registered.region;
    return memory;
}

static uint8_t content(uint32_t block, size_t at) {
    uint32_t mixed = (block + 1) * 2654435761u ^ (uint32_t)(at + 1) * 2246822519u;
    return (uint8_t)(mixed >> 13);
}

int main(int argc, char **argv) {
    if (argc != 3 || kvf_abi_version() != KVF_ABI_VERSION) {
        fprintf(stderr, "usage: %s COORDINATOR_URL FOLDER (library %s)\n", argv[0], kvf_version());
        return 2;
    }
    kvf_error error;
    kvf_agent *a = embed(argv[1], argv[2], "a"), *b = embed(argv[1], argv[2], "b");
    kvf_namespace space;
    memset(&space, 0, sizeof space);
    space.size = sizeof space;
    space.name = "example-embedded";
    space.dtype = "bf16";
    space.tokens_per_block = 16;
    space.plane_count = 1;
    space.plane_bytes = BLOCK_BYTES;
    space.hash_len = HASH;
    space.checksum = KVF_CHECKSUM_ALWAYS;
    uint32_t region_a, region_b, slots[BLOCKS];
    uint8_t *from = memory_of(a, &space, &region_a), *to = memory_of(b, &space, &region_b);

    static uint8_t hashes[BLOCKS][HASH];
    for (uint32_t i = 0; i < BLOCKS; i++) {
        slots[i] = i;
        for (size_t at = 0; at < HASH; at++) hashes[i][at] = content(i + 1000, at);
    }
    kvf_hashes wanted = {.bytes = &hashes[0][0], .hash_len = HASH, .count = BLOCKS};
    check(kvf_reserve(a, region_a, slots, BLOCKS, &error), &error, "reserve");
    for (uint32_t i = 0; i < BLOCKS; i++) {
        for (size_t at = 0; at < BLOCK_BYTES; at++) from[i * BLOCK_BYTES + at] = content(i, at);
    }
    kvf_sealed sealed;
    memset(&sealed, 0, sizeof sealed);
    sealed.size = sizeof sealed;
    sealed.wait_announced_ms = 10000;
    check(kvf_seal(a, region_a, slots, &wanted, &sealed, &error), &error, "seal");

    kvf_pull_request request;
    memset(&request, 0, sizeof request);
    request.size = sizeof request;
    request.namespace_name = space.name;
    request.hashes = wanted;
    request.slots = slots;
    request.region = region_b;
    request.timeout_ms = 60000;
    kvf_pull *pull = NULL;
    check(kvf_pull_start(b, &request, &pull, &error), &error, "pull");
    check(kvf_pull_wait(pull, 70000, &error), &error, "pull");
    uint32_t right = 0;
    for (int done = 0; !done;) {
        kvf_outcome it;
        size_t given = 0;
        check(kvf_pull_poll(pull, &it, 1, &given, &done, &error), &error, "poll");
        if (given == 1 && it.kind == KVF_OUTCOME_PULLED) {
            size_t at = 0;
            while (at < BLOCK_BYTES && to[it.slot * BLOCK_BYTES + at] == content(it.index, at)) at++;
            right += at == BLOCK_BYTES;
            if (it.index == 0) printf("block 0 from %s by %s\n", it.source_node, it.transport);
        }
    }
    kvf_pull_free(pull);
    check(kvf_close(b, &error), &error, "close b"); /* ends its agent, too */
    check(kvf_close(a, &error), &error, "close a");
    munmap(from, BYTES);
    munmap(to, BYTES);
    printf("%u blocks, every byte as published\n", right);
    return right == BLOCKS ? 0 : 1;
}
