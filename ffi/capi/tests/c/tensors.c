/* tensors SOCKET_A SOCKET_B: a set of tensors is published, found, pulled by name and whole, and removed. */
#include "check.h"

enum { CHUNKS = 8 };

static kvf_error error;
static const uint64_t matrix[] = {2, 4096}, row[] = {20480}, one[] = {4096};
static const kvf_tensor set[] = {
    {.name = "layer.0.weight", .dtype = "U8", .shape = matrix, .dimensions = 2, .offset = 0, .bytes = 8192},
    {.name = "layer.1.weight", .dtype = "U8", .shape = row, .dimensions = 1, .offset = 8192, .bytes = 20480},
    {.name = "norm", .dtype = "U8", .shape = one, .dimensions = 1, .offset = 28672, .bytes = 4096},
};

static uint8_t byte_at(uint64_t at) { return (uint8_t)((at * 2654435761u) >> 11); }

static int is_here(const uint8_t *memory, const kvf_landed_tensor *it, uint64_t shift) {
    for (uint64_t i = 0; i < it->tensor.bytes; i++) {
        if (memory[it->region_offset - shift + i] != byte_at(it->tensor.offset + i)) return 0;
    }
    return 1;
}

static kvf_source identity(void) {
    static const kvf_attribute attributes[] = {{"dtype", "u8"}, {"quantization", "none"}};
    return (kvf_source){.size = sizeof(kvf_source),
                        .namespace_name = "tensors",
                        .name = "org/model",
                        .revision = "r1",
                        .attributes = attributes,
                        .attribute_count = 2,
                        .content = (const uint8_t *)"abcd",
                        .content_bytes = 4};
}

static void publishes(kvf_agent *a, uint32_t region, kvf_publication *publication) {
    kvf_source source = identity();
    static kvf_chunk_run runs[2];
    runs[0] = (kvf_chunk_run){.region = region, .first_slot = 8, .slots = 3};
    runs[1] = (kvf_chunk_run){.region = region, .first_slot = 11, .slots = CHUNKS - 3};
    *publication = (kvf_publication){.size = sizeof *publication,
                                     .runs = runs,
                                     .run_count = 2,
                                     .tensors = set,
                                     .tensor_count = 3,
                                     .wait_announced_ms = 60000};
    EXPECT(KVF_OK, kvf_tensors_publish(a, &source, publication, &error));
    CHECK(publication->announced == 1);
    kvf_source_summary summary = {.size = sizeof summary};
    kvf_workers *workers;
    size_t count;
    EXPECT(KVF_OK, kvf_source_status(a, &publication->source, &summary, &workers, &count, &error));
    CHECK(summary.state == KVF_SOURCE_INITIALISING && summary.workers_initialising == 1 && count == 1);
    kvf_workers_free(workers);

    publication->ready = 1;
    EXPECT(KVF_OK, kvf_tensors_publish(a, &source, publication, &error));
    CHECK(publication->announced == 1);

    /* The same name with other tensors. */
    kvf_publication other = *publication;
    other.tensor_count = 2;
    EXPECT(KVF_SOURCE_EXISTS, kvf_tensors_publish(a, &source, &other, &error));
    other.tensor_count = 0;
    EXPECT(KVF_INVALID_ARGUMENT, kvf_tensors_publish(a, &source, &other, &error));
    other = *publication;
    other.flags = KVF_CHAINED;
    EXPECT(KVF_INVALID_ARGUMENT, kvf_tensors_publish(a, &source, &other, &error));
    source.name = NULL;
    EXPECT(KVF_INVALID_ARGUMENT, kvf_tensors_publish(a, &source, publication, &error));
}

static void is_found(kvf_agent *b, const kvf_publication *published) {
    kvf_sources *sources;
    size_t count = 99;
    EXPECT(KVF_OK, kvf_sources_list(b, "tensors", "org/", &sources, &count, &error));
    CHECK(count == 1);
    kvf_source_summary summary = {.size = sizeof summary};
    EXPECT(KVF_OK, kvf_sources_at(sources, 0, &summary, &error));
    CHECK(memcmp(&summary.source, &published->source, sizeof summary.source) == 0);
    CHECK(strcmp(summary.name, "org/model") == 0 && strcmp(summary.revision, "r1") == 0);
    CHECK(strcmp(summary.namespace_name, "tensors") == 0 && summary.world_size == 1);
    CHECK(summary.state == KVF_SOURCE_READY && summary.ranks_ready == 1 && summary.workers_ready == 1);
    CHECK(summary.tensors == 3 && summary.bytes == 8192 + 20480 + 4096);
    EXPECT(KVF_INVALID_ARGUMENT, kvf_sources_at(sources, 1, &summary, &error));
    kvf_sources_free(sources);
    EXPECT(KVF_OK, kvf_sources_list(b, NULL, "nobody's", &sources, &count, &error));
    CHECK(count == 0);
    kvf_sources_free(sources);

    kvf_workers *workers;
    EXPECT(KVF_OK, kvf_source_status(b, &published->source, NULL, &workers, &count, &error));
    kvf_worker worker = {.size = sizeof worker};
    EXPECT(KVF_OK, kvf_workers_at(workers, 0, &worker, &error));
    CHECK(count == 1 && strcmp(worker.node, "a") == 0 && worker.rank == 0 && worker.state == KVF_SOURCE_READY);
    CHECK(worker.cause == KVF_CAUSE_NONE && worker.incarnation > 0);
    CHECK(memcmp(&worker.digest, &published->digest, sizeof worker.digest) == 0);
    EXPECT(KVF_INVALID_ARGUMENT, kvf_workers_at(workers, 1, &worker, &error));
    kvf_workers_free(workers);

    kvf_tensor_set found = {.size = sizeof found};
    kvf_tensors *tensors;
    EXPECT(KVF_OK, kvf_source_tensors(b, &published->source, 0, NULL, &found, &tensors, &error));
    CHECK(found.count == 3 && found.chunk_bytes == BLOCK && found.chunks == CHUNKS);
    CHECK(memcmp(&found.digest, &published->digest, sizeof found.digest) == 0);
    for (size_t i = 0; i < found.count; i++) { /* by name, as they are above */
        kvf_tensor it;
        EXPECT(KVF_OK, kvf_tensors_at(tensors, i, &it, &error));
        CHECK(strcmp(it.name, set[i].name) == 0 && strcmp(it.dtype, "U8") == 0);
        CHECK(it.offset == set[i].offset && it.bytes == set[i].bytes && it.dimensions == set[i].dimensions);
        CHECK(memcmp(it.shape, set[i].shape, it.dimensions * sizeof *it.shape) == 0);
    }
    kvf_tensors_free(tensors);
    EXPECT(KVF_INVALID_ARGUMENT, kvf_source_tensors(b, &published->source, 7, NULL, &found, &tensors, &error));
}

static void is_pulled(kvf_agent *b, uint32_t region, const uint8_t *memory, const kvf_publication *published) {
    const char *names[] = {"norm", "not there"}, *prefixes[] = {"layer.1."};
    kvf_tensor_request request = {.size = sizeof request,
                                  .source = published->source,
                                  .digest = &published->digest,
                                  .names = names,
                                  .name_count = 2,
                                  .region = region,
                                  .first_slot = 32,
                                  .timeout_ms = 120000};
    kvf_tensor_summary summary = {.size = sizeof summary};
    kvf_landed *landed;
    kvf_landed_tensor it = {.size = sizeof it};
    EXPECT(KVF_OK, kvf_tensors_pull(b, &request, &summary, &landed, &error));
    CHECK(summary.count == 1 && summary.tensors_here == 1 && summary.tensors_failed == 0);
    CHECK(summary.names_unknown == 1 && summary.region == region && summary.chunks_pulled == 1 && !summary.serving);
    EXPECT(KVF_OK, kvf_landed_at(landed, 0, &it, &error));
    CHECK(strcmp(it.tensor.name, "norm") == 0 && it.kind == KVF_OUTCOME_PULLED && it.detail[0] == 0);
    CHECK(it.region_offset == (32 + 7) * BLOCK && is_here(memory, &it, 0));
    EXPECT(KVF_INVALID_ARGUMENT, kvf_landed_at(landed, 1, &it, &error));
    kvf_landed_free(landed);

    /* More of it, then all of it, and it is served here, too. */
    request.name_count = 0;
    request.prefixes = prefixes;
    request.prefix_count = 1;
    EXPECT(KVF_OK, kvf_tensors_pull(b, &request, &summary, &landed, &error));
    CHECK(summary.count == 1 && summary.chunks_pulled == 5);
    kvf_landed_free(landed);
    request.prefix_count = 0;
    request.flags = KVF_SERVE;
    EXPECT(KVF_OK, kvf_tensors_pull(b, &request, &summary, &landed, &error));
    CHECK(summary.count == 3 && summary.tensors_here == 3 && summary.chunks_here_before == 6);
    CHECK(summary.chunks_pulled == 2 && summary.serving == 1);
    for (size_t i = 0; i < summary.count; i++) {
        EXPECT(KVF_OK, kvf_landed_at(landed, i, &it, &error));
        CHECK(it.kind == KVF_OUTCOME_PULLED || it.kind == KVF_OUTCOME_LOCAL);
        CHECK(is_here(memory, &it, 0));
    }
    kvf_landed_free(landed);

    /* Into memory of the agent's. */
    request.flags = KVF_FRESH_MEMORY | KVF_NO_REPLICA;
    EXPECT(KVF_OK, kvf_tensors_pull(b, &request, &summary, &landed, &error));
    CHECK(summary.count == 3 && summary.tensors_here == 3 && summary.region != region);
    kvf_region_map map;
    EXPECT(KVF_OK, kvf_region_open(b, summary.region, 0, &map, &error));
    uint8_t *fresh = mmap(NULL, map.data_bytes, PROT_READ, MAP_SHARED, map.data, 0);
    CHECK(fresh != MAP_FAILED);
    for (size_t i = 0; i < summary.count; i++) {
        EXPECT(KVF_OK, kvf_landed_at(landed, i, &it, &error));
        CHECK(is_here(fresh, &it, 0));
    }
    kvf_landed_free(landed);
    munmap(fresh, map.data_bytes);
    close(map.data);
    close(map.generations);
    EXPECT(KVF_OK, kvf_unregister(b, summary.region, NULL, &error));

    request.flags = KVF_CHAINED;
    EXPECT(KVF_INVALID_ARGUMENT, kvf_tensors_pull(b, &request, &summary, &landed, &error));
    request.flags = KVF_SERVE | KVF_PACKED;
    EXPECT(KVF_INVALID_ARGUMENT, kvf_tensors_pull(b, &request, &summary, &landed, &error));
    request.flags = 0;
    request.region += 100;
    EXPECT(KVF_REGION_UNKNOWN, kvf_tensors_pull(b, &request, &summary, &landed, &error));
}

static void ends(kvf_agent *a, kvf_agent *b, const kvf_publication *published) {
    int withdrawn = 9;
    EXPECT(KVF_OK, kvf_tensors_withdraw(a, &published->source, 0, &withdrawn, &error));
    CHECK(withdrawn == 1);
    EXPECT(KVF_OK, kvf_tensors_withdraw(a, &published->source, 0, &withdrawn, &error));
    CHECK(withdrawn == 0);
    uint32_t removed = 9;
    EXPECT(KVF_OK, kvf_source_remove(b, &published->source, "b", &removed, &error));
    CHECK(removed == 1);
    kvf_tensor_request request = {.size = sizeof request,
                                  .source = published->source,
                                  .flags = KVF_FRESH_MEMORY,
                                  .timeout_ms = 500};
    kvf_tensor_summary summary = {.size = sizeof summary};
    kvf_landed *landed;
    kvf_status status = kvf_tensors_pull(b, &request, &summary, &landed, &error);
    CHECK(status == KVF_SOURCE_UNKNOWN || status == KVF_SOURCE_NOT_READY || status == KVF_DEADLINE);
    kvf_source_id nobody = {.bytes = {1, 2, 3}};
    kvf_workers *workers;
    size_t count;
    EXPECT(KVF_SOURCE_UNKNOWN, kvf_source_status(b, &nobody, NULL, &workers, &count, &error));
    EXPECT(KVF_SOURCE_UNKNOWN, kvf_source_remove(b, &nobody, NULL, NULL, &error));
}

static void *cancels(void *canceller) {
    kvf_error said;
    usleep(300000);
    CHECK(kvf_cancel(canceller, &said) == KVF_OK && said.status == KVF_OK);
    return NULL;
}

/* Nobody publishes it: the agent would look for it until the timeout. */
static void is_given_up(kvf_agent *b) {
    kvf_canceller *canceller;
    EXPECT(KVF_OK, kvf_canceller_new(&canceller, &error));
    kvf_tensor_request request = {.size = sizeof request,
                                  .source = {.bytes = {4, 5, 6}},
                                  .flags = KVF_FRESH_MEMORY,
                                  .timeout_ms = 60000,
                                  .canceller = canceller};
    kvf_tensor_summary summary = {.size = sizeof summary, .region = 77};
    kvf_landed *untouched = (kvf_landed *)&request, *landed = untouched;
    pthread_t thread;
    double began = now();
    CHECK(pthread_create(&thread, NULL, cancels, canceller) == 0);
    EXPECT(KVF_CANCELLED, kvf_tensors_pull(b, &request, &summary, &landed, &error));
    CHECK(now() - began >= 0.3 && now() - began < 30);
    CHECK(landed == untouched && summary.region == 0 && summary.count == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    /* One that is to come is given up as well; a request of a program that knows of none is not. */
    EXPECT(KVF_CANCELLED, kvf_tensors_pull(b, &request, &summary, &landed, &error));
    request.size = offsetof(kvf_tensor_request, canceller);
    request.timeout_ms = 300;
    kvf_status status = kvf_tensors_pull(b, &request, &summary, &landed, &error);
    CHECK(status == KVF_SOURCE_UNKNOWN || status == KVF_DEADLINE);
    kvf_canceller_free(canceller);
    kvf_canceller_free(NULL);
    EXPECT(KVF_INVALID_ARGUMENT, kvf_cancel(NULL, &error));
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    kvf_agent *a = connect_with(argv[1], 0), *b = connect_with(argv[2], 0);
    kvf_namespace space = space_of("tensors");
    uint8_t *from, *to;
    uint32_t region_a = region_of(a, &space, &from), region_b = region_of(b, &space, &to);
    for (uint64_t i = 0; i < CHUNKS * BLOCK; i++) from[8 * BLOCK + i] = byte_at(i);
    kvf_publication publication;
    publishes(a, region_a, &publication);
    is_found(b, &publication);
    is_pulled(b, region_b, to, &publication);
    is_given_up(b);
    ends(a, b, &publication);
    EXPECT(KVF_OK, kvf_close(b, &error));
    EXPECT(KVF_OK, kvf_close(a, &error));
    munmap(from, SLOTS * BLOCK);
    munmap(to, SLOTS * BLOCK);
    return 0;
}
