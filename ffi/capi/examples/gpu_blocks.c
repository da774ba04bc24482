/* Publishes blocks from GPU memory at one agent, and pulls them into GPU memory at another.
 *
 *   gpu_blocks SOCKET_A SOCKET_B
 *
 * Compile it against the toolkit's cuda.h where there is one (-DHAVE_CUDA_H), and link libcuda.so.1. */
#include <kvferry.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef HAVE_CUDA_H
#include <cuda.h>
#else
/* What it uses of cuda.h, as the CUDA Driver API reference has it. */
typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct { char bytes[16]; } CUuuid;
typedef struct { char reserved[64]; } CUipcMemHandle;
enum { CUDA_SUCCESS = 0, CU_STREAM_NON_BLOCKING = 1 };
CUresult cuInit(unsigned flags);
CUresult cuDeviceGet(CUdevice *device, int ordinal);
CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device);
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device);
CUresult cuCtxPushCurrent_v2(CUcontext context);
CUresult cuMemAlloc_v2(CUdeviceptr *at, size_t bytes);
CUresult cuMemFree_v2(CUdeviceptr at);
CUresult cuMemHostRegister_v2(void *at, size_t bytes, unsigned flags);
CUresult cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr at);
CUresult cuStreamCreate(CUstream *stream, unsigned flags);
CUresult cuStreamSynchronize(CUstream stream);
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream);
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream);
#define cuCtxPushCurrent cuCtxPushCurrent_v2
#define cuMemAlloc cuMemAlloc_v2
#define cuMemFree cuMemFree_v2
#define cuMemHostRegister cuMemHostRegister_v2
#define cuMemcpyHtoDAsync cuMemcpyHtoDAsync_v2
#define cuMemcpyDtoHAsync cuMemcpyDtoHAsync_v2
#endif

enum { BLOCKS = 32, BLOCK_BYTES = 65536, HASH = 32, BYTES = BLOCKS * BLOCK_BYTES };

static void check(kvf_status status, const kvf_error *error, const char *what) {
    if (status != KVF_OK) {
        fprintf(stderr, "%s: %s: %s\n", what, kvf_status_text(status), error->message);
        exit(1);
    }
}

static void cuda(CUresult result, const char *what) {
    if (result != CUDA_SUCCESS) {
        fprintf(stderr, "%s: CUresult %d\n", what, (int)result);
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

static uint8_t content(size_t at) {
    return (uint8_t)(((uint32_t)at + 1) * 2654435761u >> 17);
}

/* The memory as the agent can open it. It begins its allocation here; a part of one has an offset. */
static kvf_cuda_ipc handle_of(CUdevice device, CUdeviceptr memory) {
    kvf_cuda_ipc ipc;
    CUuuid uuid;
    CUipcMemHandle handle;
    memset(&ipc, 0, sizeof ipc);
    cuda(cuDeviceGetUuid_v2(&uuid, device), "cuDeviceGetUuid");
    cuda(cuIpcGetMemHandle(&handle, memory), "cuIpcGetMemHandle");
    memcpy(ipc.device_uuid, uuid.bytes, sizeof ipc.device_uuid);
    memcpy(ipc.handle, handle.reserved, sizeof ipc.handle);
    ipc.length = BYTES;
    return ipc;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s SOCKET_A SOCKET_B\n", argv[0]);
        return 2;
    }
    CUdevice device;
    CUcontext context;
    CUstream stream;
    CUdeviceptr from, to;
    uint8_t *host = malloc(2 * BYTES);
    cuda(cuInit(0), "cuInit");
    cuda(cuDeviceGet(&device, 0), "cuDeviceGet");
    cuda(cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
    cuda(cuCtxPushCurrent(context), "cuCtxPushCurrent");
    cuda(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
    cuda(cuMemAlloc(&from, BYTES), "cuMemAlloc");
    cuda(cuMemAlloc(&to, BYTES), "cuMemAlloc");
    cuda(cuMemHostRegister(host, 2 * BYTES, 0), "cuMemHostRegister");
    for (size_t at = 0; at < BYTES; at++) {
        host[at] = content(at);
    }

    kvf_error error;
    kvf_agent *a = connect_to(argv[1]), *b = connect_to(argv[2]);
    kvf_namespace space;
    memset(&space, 0, sizeof space);
    space.size = sizeof space;
    space.name = "example-gpu";
    space.dtype = "bf16";
    space.tokens_per_block = 16;
    space.plane_count = 1;
    space.plane_bytes = BLOCK_BYTES;
    space.hash_len = HASH;
    space.checksum = KVF_CHECKSUM_ALWAYS;
    kvf_plane plane = {.base = 0, .stride = BLOCK_BYTES, .len = BLOCK_BYTES};
    kvf_geometry geometry = {.planes = &plane, .plane_count = 1, .slots = BLOCKS};
    kvf_cuda_ipc ipc_from = handle_of(device, from), ipc_to = handle_of(device, to);
    kvf_region region_a, region_b;
    check(kvf_register_cuda_ipc(a, &space, &ipc_from, &geometry, 0, &region_a, &error), &error, "register A");
    check(kvf_register_cuda_ipc(b, &space, &ipc_to, &geometry, 0, &region_b, &error), &error, "register B");

    /* Publish: reserve, launch what writes, synchronise, seal. In this order. */
    static uint8_t hashes[BLOCKS][HASH];
    uint32_t slots[BLOCKS];
    for (uint32_t i = 0; i < BLOCKS; i++) {
        slots[i] = i;
        for (size_t at = 0; at < HASH; at++) {
            hashes[i][at] = (uint8_t)(i * 7 + at);
        }
    }
    check(kvf_reserve(a, region_a.region, slots, BLOCKS, &error), &error, "reserve");
    cuda(cuMemcpyHtoDAsync(from, host, BYTES, stream), "cuMemcpyHtoDAsync");
    cuda(cuStreamSynchronize(stream), "cuStreamSynchronize");
    kvf_hashes wanted = {.bytes = &hashes[0][0], .hash_len = HASH, .count = BLOCKS};
    kvf_sealed sealed;
    memset(&sealed, 0, sizeof sealed);
    sealed.size = sizeof sealed;
    sealed.wait_announced_ms = 10000;
    check(kvf_seal(a, region_a.region, slots, &wanted, &sealed, &error), &error, "seal");

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
    check(kvf_pull_wait(pull, 70000, &error), &error, "pull");
    kvf_outcome outcomes[BLOCKS];
    size_t given = 0;
    int done = 0;
    check(kvf_pull_poll(pull, outcomes, BLOCKS, &given, &done, &error), &error, "poll");
    for (size_t i = 0; i < given; i++) {
        if (outcomes[i].kind != KVF_OUTCOME_PULLED) {
            fprintf(stderr, "block %u: kind %d: %s\n", outcomes[i].index, (int)outcomes[i].kind, outcomes[i].detail);
            return 1;
        }
    }
    kvf_pull_free(pull);

    cuda(cuMemcpyDtoHAsync(host + BYTES, to, BYTES, stream), "cuMemcpyDtoHAsync");
    cuda(cuStreamSynchronize(stream), "cuStreamSynchronize");
    if (given != BLOCKS || memcmp(host, host + BYTES, BYTES) != 0) {
        fprintf(stderr, "bytes differ\n");
        return 1;
    }
    /* Only now may the memory be freed. */
    check(kvf_unregister(a, region_a.region, NULL, &error), &error, "unregister A");
    check(kvf_unregister(b, region_b.region, NULL, &error), &error, "unregister B");
    cuda(cuMemFree(from), "cuMemFree");
    cuda(cuMemFree(to), "cuMemFree");
    check(kvf_close(b, &error), &error, "close B");
    check(kvf_close(a, &error), &error, "close A");
    printf("%d blocks from GPU memory to GPU memory, every byte as published\n", BLOCKS);
    return 0;
}
