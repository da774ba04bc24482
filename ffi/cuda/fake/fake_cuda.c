/* A libcuda over host memory, for tests: what kvferry-cuda uses, no more.
 *
 * - Device memory is a memfd, mapped twice: where the fake copies, and without any access where the device address
 *   points, so that host code which follows a device address dies.
 * - Copies are done later, by one worker thread, in order; fake_hold keeps it from starting any.
 * - A copy whose device memory is gone, or whose host memory is not pinned, when it is done is a violation.
 * - IPC handles work between processes, and not within one; an opened handle is reference-counted as the driver does it.
 * - Every call is counted (fake_calls) and can be made to fail (fake_fail).
 *
 * - fake_set("mapped", 1) makes what is mapped from then on readable and writable where the device address points, so that
 *   RDMA devices can be told of it.
 *
 * In the environment, FAKE_CUDA_FAIL=name:code:after does what fake_fail does, for ever, FAKE_CUDA_DELAY_US=n what
 * fake_set("delay_us", n) does, and FAKE_CUDA_MAPPED=1 what fake_set("mapped", 1) does: for processes that a test cannot
 * reach into.
 *
 * WITHOUT_OPTIONAL leaves out what older drivers lack, EMPTY everything.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef EMPTY
int fake_nothing;
#else

typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct { char bytes[16]; } CUuuid;
typedef struct { char reserved[64]; } CUipcMemHandle;
typedef struct {
    size_t srcXInBytes, srcY;
    unsigned srcMemoryType;
    const void *srcHost;
    CUdeviceptr srcDevice;
    void *srcArray;
    size_t srcPitch;
    size_t dstXInBytes, dstY;
    unsigned dstMemoryType;
    void *dstHost;
    CUdeviceptr dstDevice;
    void *dstArray;
    size_t dstPitch, WidthInBytes, Height;
} CUDA_MEMCPY2D;

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201,
       INVALID_HANDLE = 400, NOT_READY = 600, ALREADY_REGISTERED = 712, NOT_REGISTERED = 713, NOT_SUPPORTED = 801 };
enum { DEVICES = 2, MAX = 1024, PITCH_LIMIT = 1 << 30 };
static const size_t DEVICE_BYTES = (size_t)1 << 30;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work = PTHREAD_COND_INITIALIZER;

/* ---- what tests look at and set ---- */
static struct { char name[64]; long calls; int code; long after, times; } functions[128];
static long violations, held, delay_us, dmabuf_supported = 1, ordering = 0, flush_options = 1, coherent = 0, mapped;
static long contexts, memories, imports, pins, streams, events;

static int entry(const char *name) { /* with the lock held: its place in the table */
    for (int i = 0; i < 128; i++) {
        if (!functions[i].name[0]) strncpy(functions[i].name, name, 63);
        if (!strcmp(functions[i].name, name)) return i;
    }
    abort();
}
static CUresult enter(const char *name) {
    pthread_mutex_lock(&lock);
    int i = entry(name), code = 0;
    functions[i].calls++;
    if (functions[i].times && functions[i].after-- <= 0) {
        functions[i].times--;
        code = functions[i].code;
    }
    pthread_mutex_unlock(&lock);
    return code;
}
#define ENTER() do { CUresult injected_ = enter(__func__); if (injected_) return injected_; } while (0)
#define IN_CONTEXT() do { ENTER(); if (!depth) return INVALID_CONTEXT; } while (0)

void fake_fail(const char *name, int code, long after, long times) {
    pthread_mutex_lock(&lock);
    int i = entry(name);
    functions[i].code = code;
    functions[i].after = after;
    functions[i].times = times;
    pthread_mutex_unlock(&lock);
}
__attribute__((constructor)) static void set_from_environment(void) {
    char name[64];
    int code;
    long after;
    const char *said = getenv("FAKE_CUDA_FAIL"), *delay = getenv("FAKE_CUDA_DELAY_US");
    if (delay) delay_us = atol(delay);
    mapped = getenv("FAKE_CUDA_MAPPED") != NULL;
    if (said && sscanf(said, "%63[^:]:%d:%ld", name, &code, &after) == 3) fake_fail(name, code, after, 1L << 40);
}
long fake_calls(const char *name) {
    pthread_mutex_lock(&lock);
    long calls = functions[entry(name)].calls;
    pthread_mutex_unlock(&lock);
    return calls;
}
long fake_get(const char *what) {
    pthread_mutex_lock(&lock);
    long value = !strcmp(what, "violations") ? violations : !strcmp(what, "contexts") ? contexts
        : !strcmp(what, "memories") ? memories : !strcmp(what, "imports") ? imports : !strcmp(what, "pins") ? pins
        : !strcmp(what, "streams") ? streams : !strcmp(what, "events") ? events : -1;
    pthread_mutex_unlock(&lock);
    return value;
}
void fake_set(const char *what, long value) {
    pthread_mutex_lock(&lock);
    if (!strcmp(what, "hold")) held = value;
    if (!strcmp(what, "delay_us")) delay_us = value;
    if (!strcmp(what, "dmabuf")) dmabuf_supported = value;
    if (!strcmp(what, "coherent")) coherent = value;
    if (!strcmp(what, "mapped")) mapped = value;
    if (!strcmp(what, "ordering")) ordering = value;
    if (!strcmp(what, "flush_options")) flush_options = value;
    pthread_cond_broadcast(&work);
    pthread_mutex_unlock(&lock);
}

/* ---- memory ---- */
static struct memory { char *rw, *device; size_t size; int fd, owner, opened; ino_t inode; } table[MAX];
static struct { char *start; size_t len; } pinned[MAX];

static struct memory *find(CUdeviceptr at, size_t len) { /* with the lock held */
    for (int i = 0; i < MAX; i++) {
        struct memory *m = &table[i];
        if (m->size && at >= (CUdeviceptr)m->device && at + len <= (CUdeviceptr)m->device + m->size) return m;
    }
    return NULL;
}
static int is_pinned(const char *at, size_t len) { /* with the lock held */
    for (int i = 0; i < MAX; i++)
        if (pinned[i].len && at >= pinned[i].start && at + len <= pinned[i].start + pinned[i].len) return 1;
    return 0;
}
static struct memory *map(int fd, size_t size, int owner) { /* with the lock held */
    struct stat st;
    if (fd < 0 || fstat(fd, &st)) return NULL;
    for (int i = 0; i < MAX; i++) {
        if (table[i].size) continue;
        char *rw = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        char *device = mmap(NULL, size, mapped ? PROT_READ | PROT_WRITE : PROT_NONE, MAP_SHARED, fd, 0);
        if (rw == MAP_FAILED || device == MAP_FAILED) return NULL;
        table[i] = (struct memory){ rw, device, size, fd, owner, 0, st.st_ino };
        return &table[i];
    }
    return NULL;
}
static void unmap(struct memory *m) {
    munmap(m->rw, m->size);
    munmap(m->device, m->size);
    close(m->fd);
    memset(m, 0, sizeof *m);
}

/* ---- the worker ---- */
struct event { int pending, dead; };
static struct op { struct op *next; struct event *event; int to_device; CUdeviceptr device; char *host; size_t len; } *head, **tail = &head;

static void *worker(void *unused) {
    (void)unused;
    for (;;) {
        pthread_mutex_lock(&lock);
        while (!head || held) pthread_cond_wait(&work, &lock);
        long delay = head->event ? 0 : delay_us;
        pthread_mutex_unlock(&lock);
        if (delay) usleep((useconds_t)delay);
        pthread_mutex_lock(&lock);
        struct op *op = head;
        head = op->next;
        if (!head) tail = &head;
        if (op->event) {
            op->event->pending = 0;
        } else {
            struct memory *m = find(op->device, op->len);
            if (!m || !is_pinned(op->host, op->len)) {
                violations++;
            } else {
                char *device = m->rw + (op->device - (CUdeviceptr)m->device);
                memcpy(op->to_device ? device : op->host, op->to_device ? op->host : device, op->len);
            }
        }
        free(op);
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}
static void enqueue(struct op op) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    extern void fake_start(void);
    pthread_once(&once, fake_start);
    struct op *copy = malloc(sizeof op);
    *copy = op;
    copy->next = NULL;
    pthread_mutex_lock(&lock);
    if (op.event) op.event->pending = 1;
    *tail = copy;
    tail = &copy->next;
    pthread_cond_broadcast(&work);
    pthread_mutex_unlock(&lock);
}
void fake_start(void) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, worker, NULL)) abort();
    pthread_detach(thread);
}

/* ---- contexts: a stack per thread ---- */
static __thread void *stack[64];
static __thread int depth;
static int context_device[DEVICES];
static int current(void) { return *(int *)stack[depth - 1]; }
long fake_depth(void) { return depth; }

/* ---- the driver API ---- */
CUresult cuInit(unsigned flags) { ENTER(); return flags ? INVALID_VALUE : OK; }
CUresult cuDriverGetVersion(int *version) { ENTER(); *version = 12040; return OK; }
CUresult cuGetErrorName(CUresult code, const char **text) { *text = "CUDA_ERROR_OF_THE_FAKE"; return code ? OK : INVALID_VALUE; }
CUresult cuGetErrorString(CUresult code, const char **text) { *text = "the fake says so"; return code ? OK : INVALID_VALUE; }
CUresult cuDeviceGetCount(int *count) { ENTER(); *count = DEVICES; return OK; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    ENTER();
    *device = ordinal;
    return ordinal >= 0 && ordinal < DEVICES ? OK : INVALID_DEVICE;
}
CUresult cuDeviceGetName(char *name, int len, CUdevice device) { ENTER(); snprintf(name, (size_t)len, "Fake %d", device); return OK; }
CUresult cuDeviceGetPCIBusId(char *id, int len, CUdevice device) { ENTER(); snprintf(id, (size_t)len, "00FA:%02X:00.0", 0xE0 + device); return OK; }
CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device) { ENTER(); memset(uuid->bytes, 0xA0 + device, 16); return OK; }
CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) { ENTER(); (void)device; *bytes = DEVICE_BYTES; return OK; }
CUresult cuDeviceGetAttribute(int *value, int which, CUdevice device) {
    ENTER();
    (void)device;
    switch (which) {
    case 11: *value = PITCH_LIMIT; return OK;
    case 116: *value = 1; return OK;
    case 117: *value = (int)flush_options; return OK;
    case 118: *value = (int)ordering; return OK;
    case 124: *value = (int)dmabuf_supported; return OK;
    default: return INVALID_VALUE;
    }
}
CUresult cuDevicePrimaryCtxRetain(void **context, CUdevice device) {
    ENTER();
    __atomic_add_fetch(&contexts, 1, __ATOMIC_SEQ_CST);
    context_device[device] = device;
    *context = &context_device[device];
    return OK;
}
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) { ENTER(); (void)device; __atomic_sub_fetch(&contexts, 1, __ATOMIC_SEQ_CST); return OK; }
CUresult cuCtxPushCurrent_v2(void *context) {
    ENTER();
    if (!context || depth == 64) return INVALID_CONTEXT;
    stack[depth++] = context;
    return OK;
}
CUresult cuCtxPopCurrent_v2(void **context) {
    ENTER();
    if (!depth) return INVALID_CONTEXT;
    *context = stack[--depth];
    return OK;
}
CUresult cuMemAlloc_v2(CUdeviceptr *at, size_t bytes) {
    IN_CONTEXT();
    if (bytes > DEVICE_BYTES) return OUT_OF_MEMORY;
    int fd = memfd_create("fake-device", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)bytes)) return OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    struct memory *m = map(fd, bytes, current());
    if (m) { memories++; *at = (CUdeviceptr)m->device; }
    pthread_mutex_unlock(&lock);
    return m ? OK : OUT_OF_MEMORY;
}
CUresult cuMemFree_v2(CUdeviceptr at) {
    IN_CONTEXT();
    pthread_mutex_lock(&lock);
    struct memory *m = find(at, 1);
    int good = m && !m->opened && (CUdeviceptr)m->device == at;
    if (good) { memories--; unmap(m); }
    pthread_mutex_unlock(&lock);
    return good ? OK : INVALID_VALUE;
}
CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr at) {
    IN_CONTEXT();
    pthread_mutex_lock(&lock);
    struct memory *m = find(at, 1);
    if (m) { *base = (CUdeviceptr)m->device; *size = m->size; }
    pthread_mutex_unlock(&lock);
    return m ? OK : INVALID_VALUE;
}
CUresult cuPointerGetAttribute(void *value, int which, CUdeviceptr at) {
    IN_CONTEXT();
    pthread_mutex_lock(&lock);
    struct memory *m = find(at, 1);
    if (m && which == 9) *(int *)value = m->owner;
    pthread_mutex_unlock(&lock);
    return m && which == 9 ? OK : INVALID_VALUE;
}

struct ticket { uint32_t magic; int32_t pid, fd, device; uint64_t size, inode; };
CUresult cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr at) {
    IN_CONTEXT();
    pthread_mutex_lock(&lock);
    struct memory *m = find(at, 1);
    struct ticket ticket = { 0 };
    if (m) ticket = (struct ticket){ 0xFA4E, getpid(), m->fd, m->owner, m->size, m->inode };
    pthread_mutex_unlock(&lock);
    memset(handle, 0, sizeof *handle);
    memcpy(handle, &ticket, sizeof ticket);
    return m ? OK : INVALID_VALUE;
}
CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *at, CUipcMemHandle handle, unsigned flags) {
    IN_CONTEXT();
    struct ticket ticket;
    memcpy(&ticket, &handle, sizeof ticket);
    if (flags != 1) return INVALID_VALUE;
    if (ticket.magic != 0xFA4E) return INVALID_HANDLE;
    if (ticket.pid == getpid()) return INVALID_CONTEXT;
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", ticket.pid, ticket.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) || st.st_ino != ticket.inode) {
        if (fd >= 0) close(fd);
        return INVALID_HANDLE;
    }
    pthread_mutex_lock(&lock);
    struct memory *m = NULL;
    for (int i = 0; i < MAX && !m; i++)
        if (table[i].opened && table[i].inode == st.st_ino) m = &table[i];
    if (m) close(fd);
    else m = map(fd, ticket.size, ticket.device);
    if (m) { m->opened++; imports++; *at = (CUdeviceptr)m->device; }
    pthread_mutex_unlock(&lock);
    return m ? OK : OUT_OF_MEMORY;
}
CUresult cuIpcCloseMemHandle(CUdeviceptr at) {
    IN_CONTEXT();
    pthread_mutex_lock(&lock);
    struct memory *m = find(at, 1);
    int good = m && m->opened && (CUdeviceptr)m->device == at;
    if (good) { imports--; if (!--m->opened) unmap(m); }
    pthread_mutex_unlock(&lock);
    return good ? OK : INVALID_VALUE;
}

CUresult cuMemHostRegister_v2(void *start, size_t len, unsigned flags) {
    IN_CONTEXT();
    (void)flags;
    CUresult result = OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    if (is_pinned(start, 1)) result = ALREADY_REGISTERED;
    for (int i = 0; i < MAX && result == OUT_OF_MEMORY; i++)
        if (!pinned[i].len) { pinned[i].start = start; pinned[i].len = len; pins++; result = OK; }
    pthread_mutex_unlock(&lock);
    return result;
}
CUresult cuMemHostUnregister(void *start) {
    IN_CONTEXT();
    CUresult result = NOT_REGISTERED;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX; i++)
        if (pinned[i].len && pinned[i].start == start) { pinned[i].len = 0; pins--; result = OK; }
    pthread_mutex_unlock(&lock);
    return result;
}

CUresult cuStreamCreate(void **stream, unsigned flags) {
    IN_CONTEXT();
    if (flags != 1) return INVALID_VALUE;
    __atomic_add_fetch(&streams, 1, __ATOMIC_SEQ_CST);
    *stream = malloc(1);
    return OK;
}
CUresult cuStreamDestroy_v2(void *stream) { IN_CONTEXT(); free(stream); __atomic_sub_fetch(&streams, 1, __ATOMIC_SEQ_CST); return OK; }
CUresult cuStreamSynchronize(void *stream) {
    IN_CONTEXT();
    if (!stream) return INVALID_HANDLE;
    struct event *mark = calloc(1, sizeof *mark); /* as with events: never freed */
    enqueue((struct op){ .event = mark });
    for (int pending = 1; pending;) {
        usleep(50);
        pthread_mutex_lock(&lock);
        pending = mark->pending;
        pthread_mutex_unlock(&lock);
    }
    return OK;
}
CUresult cuEventCreate(void **event, unsigned flags) {
    IN_CONTEXT();
    (void)flags;
    __atomic_add_fetch(&events, 1, __ATOMIC_SEQ_CST);
    *event = calloc(1, sizeof(struct event)); /* never freed: the worker may still come by */
    return OK;
}
CUresult cuEventRecord(void *event, void *stream) {
    IN_CONTEXT();
    if (!stream) return INVALID_HANDLE;
    enqueue((struct op){ .event = event });
    return OK;
}
CUresult cuEventQuery(void *event) {
    IN_CONTEXT();
    pthread_mutex_lock(&lock);
    int pending = ((struct event *)event)->pending;
    pthread_mutex_unlock(&lock);
    return pending ? NOT_READY : OK;
}
CUresult cuEventDestroy_v2(void *event) { IN_CONTEXT(); ((struct event *)event)->dead = 1; __atomic_sub_fetch(&events, 1, __ATOMIC_SEQ_CST); return OK; }

static CUresult copy(int to_device, CUdeviceptr device, const void *host, size_t len) {
    pthread_mutex_lock(&lock);
    struct memory *m = find(device, len);
    if (m && m->owner != current()) violations++;
    pthread_mutex_unlock(&lock);
    if (!m) return INVALID_VALUE;
    enqueue((struct op){ .to_device = to_device, .device = device, .host = (char *)host, .len = len });
    return OK;
}
CUresult cuMemcpyDtoHAsync_v2(void *host, CUdeviceptr device, size_t len, void *stream) { IN_CONTEXT(); (void)stream; return copy(0, device, host, len); }
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr device, const void *host, size_t len, void *stream) { IN_CONTEXT(); (void)stream; return copy(1, device, host, len); }
CUresult cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D *c, void *stream) {
    IN_CONTEXT();
    (void)stream;
    int to_device = c->dstMemoryType == 2;
    if (c->srcMemoryType + c->dstMemoryType != 3 || c->srcPitch < c->WidthInBytes || c->dstPitch < c->WidthInBytes
        || c->srcPitch > PITCH_LIMIT || c->dstPitch > PITCH_LIMIT || c->srcXInBytes || c->srcY || c->dstXInBytes || c->dstY)
        return INVALID_VALUE;
    for (size_t row = 0; row < c->Height; row++) {
        CUdeviceptr device = to_device ? c->dstDevice + row * c->dstPitch : c->srcDevice + row * c->srcPitch;
        const char *host = to_device ? (const char *)c->srcHost + row * c->srcPitch : (const char *)c->dstHost + row * c->dstPitch;
        CUresult result = copy(to_device, device, host, c->WidthInBytes);
        if (result) return result;
    }
    return OK;
}

#ifndef WITHOUT_OPTIONAL
CUresult cuFlushGPUDirectRDMAWrites(int target, int scope) { IN_CONTEXT(); return target || (scope != 100 && scope != 200) ? INVALID_VALUE : OK; }
CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) { ENTER(); memset(uuid->bytes, 0xB0 + device, 16); return OK; }
CUresult cuMemGetHandleForAddressRange(void *handle, CUdeviceptr at, size_t len, int type, unsigned long long flags) {
    IN_CONTEXT();
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (type != 1 || flags > 1 || at % page || len % page) return INVALID_VALUE;
    if (flags != (unsigned long long)coherent) return NOT_SUPPORTED;
    pthread_mutex_lock(&lock);
    struct memory *m = find(at, 1);
    int fd = -1;
    if (m && !m->opened) {
        /* A copy: enough to see which bytes the descriptor begins with. */
        size_t from = (size_t)(at - (CUdeviceptr)m->device), there = m->size - from;
        fd = memfd_create("fake-dma-buf", MFD_CLOEXEC);
        if (fd >= 0 && write(fd, m->rw + from, there < len ? there : len) < 0) { close(fd); fd = -1; }
    }
    pthread_mutex_unlock(&lock);
    if (fd < 0) return NOT_SUPPORTED;
    *(int *)handle = fd;
    return OK;
}
#endif
#endif
