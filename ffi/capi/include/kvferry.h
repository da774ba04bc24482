/* libkvferry: moves KV-cache blocks between inference nodes. docs/c-api.md is the guide.
 *
 * Made by ffi/capi/regenerate.sh from the library's source: do not edit.
 *
 * Rules that hold for every function:
 *  - It returns a kvf_status, and where `error` is not NULL it says there what happened, to whom and what to do.
 *    `*error` is written in every case; out-parameters only with KVF_OK, where nothing else is said.
 *  - It ends in bounded time; which bound is said with it. After KVF_DEADLINE it is unknown whether the
 *    agent did what it was asked to.
 *  - Any thread may call it with the same handle at the same time, except kvf_close and what frees one,
 *    which must be the last call with their handle.
 *  - What it is given is read, or copied, before it returns. It keeps no pointer but a callback's.
 *  - Memory it is told to write to or read from must be as large as is said, or NULL with a count of 0.
 */

#ifndef KVFERRY_H
#define KVFERRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * Longest wait that a call may be given.
 */
#define KVF_MAX_TIMEOUT_MS 600000

/**
 * Most threads that an embedded agent may be given: more only take each other's turns.
 */
#define KVF_MAX_WORKER_THREADS 64

/**
 * Something does not work.
 */
#define KVF_LOG_ERROR 1

/**
 * Something is not as it should be.
 */
#define KVF_LOG_WARN 2

/**
 * What an operator wants to know: it starts, stops, connects.
 */
#define KVF_LOG_INFO 3

/**
 * What helps to find a fault.
 */
#define KVF_LOG_DEBUG 4

/**
 * Everything.
 */
#define KVF_LOG_TRACE 5

/**
 * Bytes of a message, with its NUL.
 */
#define KVF_MESSAGE_BYTES 512

/**
 * Pulls that are not freed yet, of one handle: as many as the agent has under way at once.
 */
#define KVF_MAX_PULLS 4096

/**
 * Most sources of one list.
 */
#define KVF_MAX_SOURCES 65536

/**
 * Most tensors of one set.
 */
#define KVF_MAX_TENSORS 131072

/**
 * Raised when something that was compiled against an older header would no longer work.
 */
#define KVF_ABI_VERSION 1

/**
 * Most hashes, and most slots, of one call.
 */
#define KVF_MAX_HASHES 65536

/**
 * Flag of a region: it stays when the connection ends. The caller promises that nothing writes to the
 * memory except into slots it has reserved, also after a restart. Pools always stay.
 */
#define KVF_KEEP_ON_DISCONNECT 1

/**
 * Flag of a pool: its memory is made of huge pages.
 */
#define KVF_HUGEPAGES 2

/**
 * Flag of a pull: what was pulled is not published as a replica.
 */
#define KVF_NO_REPLICA 4

/**
 * Flag of a seal, put or pull: the hashes are a chain, each one's parent the one before it; lets eviction take
 * leaves first. The first one's parent is `parent`, or nothing where that is NULL.
 */
#define KVF_CHAINED 8

/**
 * Flag of a pull of tensors: only the chunks wanted, one after another.
 */
#define KVF_PACKED 16

/**
 * Flag of a pull of tensors: into new memory of the agent, to be mapped by kvf_region_open.
 */
#define KVF_FRESH_MEMORY 32

/**
 * Flag of a pull of tensors: publish the set here when all of it has come.
 */
#define KVF_SERVE 64

/**
 * Flag of a publication of tensors: its regions are unregistered with it.
 */
#define KVF_UNREGISTER_WITH_IT 128

/**
 * What a call came to. 1 to 99 are the agent's reasons, with the same numbers as `ErrorDetail.Reason` in
 * agent.proto; from 100 on the library speaks for itself.
 */
typedef enum kvf_status {
  /**
   * Done.
   */
  KVF_OK = 0,
  /**
   * An argument is wrong: correct the program.
   */
  KVF_INVALID_ARGUMENT = 1,
  /**
   * No such namespace: register a region of it first.
   */
  KVF_NAMESPACE_UNKNOWN = 2,
  /**
   * Others use this namespace with another layout: do not start.
   */
  KVF_NAMESPACE_MISMATCH = 3,
  /**
   * Hashes of another length than the namespace's: correct the program.
   */
  KVF_HASH_LENGTH = 4,
  /**
   * The region has ended: register it again.
   */
  KVF_REGION_UNKNOWN = 5,
  /**
   * The geometry reaches beyond the memory: correct it.
   */
  KVF_SPAN_OUT_OF_REGION = 6,
  /**
   * The region does not have that slot: correct the program.
   */
  KVF_SLOT_OUT_OF_REGION = 7,
  /**
   * The slot is pinned, reserved, or still being written to: use another one, or try again later.
   */
  KVF_SLOT_BUSY = 8,
  /**
   * The slot is sealed already: reserve it before it is written to.
   */
  KVF_SLOT_ALREADY_SEALED = 9,
  /**
   * The slot is not reserved by this connection: reserve it first.
   */
  KVF_SLOT_NOT_RESERVED = 10,
  /**
   * Every slot of the pool is pinned or reserved: release some, or try again later.
   */
  KVF_POOL_FULL = 11,
  /**
   * Too much at once: split the call, or wait until others have ended.
   */
  KVF_BOUND_REACHED = 12,
  /**
   * The coordinator cannot be asked: never a miss; try again later.
   */
  KVF_COORDINATOR_UNREACHABLE = 13,
  /**
   * A newer lifetime of the node has taken over: stop.
   */
  KVF_FENCED = 14,
  /**
   * No such node.
   */
  KVF_NODE_UNKNOWN = 15,
  /**
   * The agent is stopping: open it again when it is back.
   */
  KVF_SHUTTING_DOWN = 16,
  /**
   * The memory cannot be used: the message says why.
   */
  KVF_MEMORY = 17,
  /**
   * The namespace still has blocks: evict them first.
   */
  KVF_NAMESPACE_IN_USE = 18,
  /**
   * Not done in time; whether it will still be done is unknown: ask again.
   */
  KVF_DEADLINE = 19,
  /**
   * The pin has expired or was released: nothing to do.
   */
  KVF_PIN_UNKNOWN = 20,
  /**
   * A block the call needs is not there.
   */
  KVF_BLOCK_MISSING = 21,
  /**
   * The memory is registered already, or something still writes to it: call again later.
   */
  KVF_MEMORY_IN_USE = 22,
  /**
   * The namespace has a pool: use it.
   */
  KVF_POOL_EXISTS = 23,
  /**
   * No such source, or its workers have ended.
   */
  KVF_SOURCE_UNKNOWN = 40,
  /**
   * The source has no worker that is ready: try again later.
   */
  KVF_SOURCE_NOT_READY = 41,
  /**
   * Other tensors are published under that name here: withdraw them first, or name these otherwise.
   */
  KVF_SOURCE_EXISTS = 42,
  /**
   * The agent has no libcuda, not that GPU, or cannot use it: give it the GPU, or restart it.
   */
  KVF_GPU_UNAVAILABLE = 50,
  /**
   * The CUDA IPC handle does not open: send a new one of memory that can be shared.
   */
  KVF_GPU_HANDLE = 51,
  /**
   * The agent's identity may not do that there: an operator grants it in the coordinator's policy file.
   */
  KVF_PERMISSION_DENIED = 60,
  /**
   * The coordinator does not know who asks: give the agent a certificate or a token.
   */
  KVF_UNAUTHENTICATED = 61,
  /**
   * A defect in the library: report it with the message.
   */
  KVF_INTERNAL = 100,
  /**
   * No agent listens there: start it, or correct the path.
   */
  KVF_AGENT_UNREACHABLE = 101,
  /**
   * The connection has ended, and with it every reservation, pin and region made by it: close the
   * handle, open anew, register again.
   */
  KVF_AGENT_LOST = 102,
  /**
   * Nothing wrong: the pull has not ended yet.
   */
  KVF_NOT_DONE = 103,
  /**
   * The pull was given up by kvf_pull_cancel or kvf_close.
   */
  KVF_CANCELLED = 104,
  /**
   * The operating system refused something: the message says what.
   */
  KVF_SYSTEM = 105,
  /**
   * The agent does not serve this user.
   */
  KVF_NOT_ALLOWED = 106,
  /**
   * Not from a callback: call it from another thread.
   */
  KVF_WRONG_THREAD = 107,
  /**
   * The agent gave a reason that this library does not know: it is newer.
   */
  KVF_UNKNOWN_REASON = 108,
} kvf_status;

/**
 * Where a block could be had.
 */
typedef enum kvf_place {
  /**
   * The agent said something that this library does not know.
   */
  KVF_PLACE_UNKNOWN = 0,
  /**
   * Nowhere.
   */
  KVF_PLACE_MISSING = 1,
  /**
   * On this agent.
   */
  KVF_PLACE_LOCAL = 2,
  /**
   * On another node.
   */
  KVF_PLACE_REMOTE = 3,
} kvf_place;

/**
 * What became of one block. 1 to 63 are the agent's, with the numbers of `OutcomeKind` in agent.proto.
 */
typedef enum kvf_outcome_kind {
  /**
   * The bytes are the block.
   */
  KVF_OUTCOME_PULLED = 1,
  /**
   * It was here already; in a region's slot it has been copied there.
   */
  KVF_OUTCOME_LOCAL = 2,
  /**
   * No node holds it: compute it.
   */
  KVF_OUTCOME_MISSING = 3,
  /**
   * Every owner had overwritten it: compute it.
   */
  KVF_OUTCOME_STALE = 4,
  /**
   * Its bytes did not have the checksum they were sealed with: compute it.
   */
  KVF_OUTCOME_CORRUPT = 5,
  /**
   * No owner could be reached: compute it, or pull again later.
   */
  KVF_OUTCOME_UNREACHABLE = 6,
  /**
   * The deadline came first; whether the block exists is unknown.
   */
  KVF_OUTCOME_TIMED_OUT = 7,
  /**
   * The coordinator could not be asked: not a miss.
   */
  KVF_OUTCOME_LOCATE_FAILED = 8,
  /**
   * No room: every slot is pinned or reserved.
   */
  KVF_OUTCOME_NO_SPACE = 9,
  /**
   * Given up by kvf_pull_cancel, kvf_pull_free or kvf_close, or because the agent stops.
   */
  KVF_OUTCOME_CANCELLED = 10,
  /**
   * Who holds it does not let this agent read it: with no ticket that it can get, or not its user. Compute it. Neither a
   * miss nor an outage, and pulling again does not help: get the right, compare clocks and the coordinator's key, look at
   * the owner's allow_uids.
   */
  KVF_OUTCOME_DENIED = 11,
  /**
   * The agent refused the whole pull; kvf_pull_wait says why. Nothing was written.
   */
  KVF_OUTCOME_REFUSED = 64,
  /**
   * The connection to the agent ended meanwhile.
   */
  KVF_OUTCOME_AGENT_LOST = 65,
  /**
   * The agent said something that this library does not know: take it for a failure.
   */
  KVF_OUTCOME_UNKNOWN = 66,
} kvf_outcome_kind;

/**
 * Which blocks a reader checks against the checksum they were sealed with.
 */
typedef enum kvf_checksum {
  /**
   * None.
   */
  KVF_CHECKSUM_OFF = 1,
  /**
   * One in 16, chosen by its hash.
   */
  KVF_CHECKSUM_SAMPLED = 2,
  /**
   * All.
   */
  KVF_CHECKSUM_ALWAYS = 3,
} kvf_checksum;

/**
 * How a source, or one worker of it, stands.
 */
typedef enum kvf_source_state {
  /**
   * Announced, not complete yet.
   */
  KVF_SOURCE_INITIALISING = 1,
  /**
   * Can be pulled; of a source: every rank.
   */
  KVF_SOURCE_READY = 2,
  /**
   * Was ready, and may not be.
   */
  KVF_SOURCE_STALE = 3,
  /**
   * Ended; remembered for a minute.
   */
  KVF_SOURCE_GONE = 4,
} kvf_source_state;

/**
 * Why a worker is stale or gone.
 */
typedef enum kvf_source_cause {
  /**
   * Neither.
   */
  KVF_CAUSE_NONE = 0,
  /**
   * Stale: its node is silent.
   */
  KVF_CAUSE_SESSION = 1,
  /**
   * Stale: readers could not read from it.
   */
  KVF_CAUSE_READERS = 2,
  /**
   * Stale: its owner writes to the memory.
   */
  KVF_CAUSE_REWRITTEN = 3,
  /**
   * Gone: with its node.
   */
  KVF_CAUSE_NODE = 4,
  /**
   * Gone: a later lifetime of the node came.
   */
  KVF_CAUSE_FENCED = 5,
  /**
   * Gone: withdrawn.
   */
  KVF_CAUSE_WITHDRAWN = 6,
  /**
   * Gone: removed by an operator.
   */
  KVF_CAUSE_REMOVED = 7,
} kvf_source_cause;

/**
 * A connection to one agent, and the agent itself where kvf_embed started it. Reservations, pins and (unless kept) regions belong to it and end with it. It
 * has threads of its own; it does not survive fork(): open another one in the child.
 */
typedef struct kvf_agent kvf_agent;

/**
 * Gives up the calls that were given it: any number of them, of any agent.
 */
typedef struct kvf_canceller kvf_canceller;

/**
 * What became of the tensors of a pull.
 */
typedef struct kvf_landed kvf_landed;

/**
 * A pull under way, or ended. It may outlive the handle it was started with.
 */
typedef struct kvf_pull kvf_pull;

/**
 * Sources, as they were when they were asked for.
 */
typedef struct kvf_sources kvf_sources;

/**
 * Tensors of a set, by name.
 */
typedef struct kvf_tensors kvf_tensors;

/**
 * A source's workers, as they were when they were asked for.
 */
typedef struct kvf_workers kvf_workers;

/**
 * How to reach an agent. All bits zero but `size` and `socket` is a good choice.
 */
typedef struct kvf_options {
  /**
   * sizeof(kvf_options).
   */
  size_t size;
  /**
   * The agent's unix socket (`kvferry agent --socket`).
   */
  const char *socket;
  /**
   * Its descriptor socket; NULL means the socket's path with ".fds" at its end.
   */
  const char *descriptor_socket;
  /**
   * How long kvf_open tries; 0 means 5,000; at most KVF_MAX_TIMEOUT_MS.
   */
  uint32_t connect_timeout_ms;
  /**
   * Deadline of calls that have none of their own; 0 means 5,000; at most KVF_MAX_TIMEOUT_MS.
   */
  uint32_t call_timeout_ms;
} kvf_options;

/**
 * What happened, to whom (agent, peer, region, block), and what to do: for people. Owned by the caller;
 * nothing in it needs to be freed.
 */
typedef struct kvf_error {
  /**
   * The same as the call's return value.
   */
  enum kvf_status status;
  /**
   * UTF-8, ends with a NUL; empty with KVF_OK; cut where it is longer.
   */
  char message[KVF_MESSAGE_BYTES];
} kvf_error;

/**
 * Block hashes, back to back.
 */
typedef struct kvf_hashes {
  /**
   * `count` x `hash_len` bytes.
   */
  const uint8_t *bytes;
  /**
   * Bytes of each hash: the namespace's.
   */
  uint32_t hash_len;
  /**
   * At most KVF_MAX_HASHES.
   */
  uint32_t count;
} kvf_hashes;

/**
 * Where a pinned block lies.
 */
typedef struct kvf_pinned {
  /**
   * False: the block is not here, and the rest means nothing.
   */
  bool pinned;
  /**
   * The region.
   */
  uint32_t region;
  /**
   * The slot there.
   */
  uint32_t slot;
  /**
   * That slot's generation.
   */
  uint64_t generation;
} kvf_pinned;

/**
 * What an eviction did.
 */
typedef struct kvf_evicted {
  /**
   * Blocks dropped.
   */
  uint64_t evicted;
  /**
   * Blocks that stayed, because they are pinned.
   */
  uint64_t kept_pinned;
} kvf_evicted;

/**
 * One setting of `kvferry agent`, as its flags have them: "pool_bytes" and "4GiB". Lists are a,b and maps are k=v,k=v.
 */
typedef struct kvf_setting {
  /**
   * The key, as in a settings file.
   */
  const char *key;
  /**
   * Its value.
   */
  const char *value;
} kvf_setting;

/**
 * Told what an embedded agent has to say: KVF_LOG_ERROR to KVF_LOG_TRACE, the part of the agent that says it, and a line of
 * text; both texts end with the call. Called from the agent's threads, from several at a time; it must return soon,
 * and must not call the library (KVF_WRONG_THREAD).
 */
typedef void (*kvf_log_callback)(uint32_t level, const char *part, const char *line, void *user);

/**
 * What an embedded agent is to be. All bits zero but `size`: an agent with nothing but defaults, on their ports.
 */
typedef struct kvf_embed_options {
  /**
   * sizeof(kvf_embed_options).
   */
  size_t size;
  /**
   * A settings file (TOML), as `kvferry agent --config` has it; NULL for none.
   */
  const char *settings_file;
  /**
   * Settings, laid over the file's; NULL with a count of 0. No environment variable is looked at.
   */
  const struct kvf_setting *settings;
  /**
   * How many there are.
   */
  size_t setting_count;
  /**
   * Deadline of calls that have none of their own; 0 means 5,000; at most KVF_MAX_TIMEOUT_MS.
   */
  uint32_t call_timeout_ms;
  /**
   * Threads that carry calls and sockets; 0: half of the processors, at least 1 and at most 8; at most
   * KVF_MAX_WORKER_THREADS. Copies have threads of their own, while there are some.
   */
  uint32_t worker_threads;
  /**
   * Who is told what the agent has to say; NULL: nobody.
   */
  kvf_log_callback log;
  /**
   * Handed to the callback.
   */
  void *log_user;
  /**
   * KVF_LOG_ERROR to KVF_LOG_TRACE: no finer than that; 0 means KVF_LOG_WARN.
   */
  uint32_t log_level;
} kvf_embed_options;

/**
 * Where an embedded agent is to be found. Texts end with a NUL.
 */
typedef struct kvf_addresses {
  /**
   * sizeof(kvf_addresses).
   */
  size_t size;
  /**
   * Its node name.
   */
  char node[136];
  /**
   * Its lifetime.
   */
  uint64_t incarnation;
  /**
   * IP:PORT where other agents' questions arrive.
   */
  char peer[64];
  /**
   * IP:PORT where other agents' reads arrive.
   */
  char data[64];
  /**
   * IP:PORT where its metrics are read; empty where they are off.
   */
  char metrics[64];
  /**
   * The unix socket of its local API: for kvf_open, also of other processes, and for `kvferry stats --socket`.
   */
  char socket[108];
  /**
   * Where descriptors are handed over.
   */
  char descriptor_socket[112];
} kvf_addresses;

/**
 * What a namespace is. All who name the same one must agree on all of it.
 */
typedef struct kvf_namespace {
  /**
   * sizeof(kvf_namespace).
   */
  size_t size;
  /**
   * 1 to 256 bytes: tenant, model, and what else keeps blocks apart.
   */
  const char *name;
  /**
   * Free name of the element type ("bf16"), 1 to 32 bytes.
   */
  const char *dtype;
  /**
   * Tokens of a block.
   */
  uint32_t tokens_per_block;
  /**
   * Pieces a block falls into, e.g. layers x (K, V); at most 1024.
   */
  uint32_t plane_count;
  /**
   * Bytes of each; a block has plane_count x plane_bytes, at most 1 GiB.
   */
  uint64_t plane_bytes;
  /**
   * Bytes of a block's hash, 8 to 64.
   */
  uint32_t hash_len;
  /**
   * A kvf_checksum; 0 means KVF_CHECKSUM_OFF.
   */
  uint32_t checksum;
} kvf_namespace;

/**
 * GPU memory of the caller's, as another process can open it.
 */
typedef struct kvf_cuda_ipc {
  /**
   * Of the GPU: what cuDeviceGetUuid_v2 gives (cudaDeviceProp.uuid).
   */
  uint8_t device_uuid[16];
  /**
   * Of the allocation: what cuIpcGetMemHandle (cudaIpcGetMemHandle) gives.
   */
  uint8_t handle[64];
  /**
   * Where the region's memory begins, in bytes from the beginning of the allocation.
   */
  uint64_t offset;
  /**
   * Bytes of it. The geometry counts from `offset`.
   */
  uint64_t length;
} kvf_cuda_ipc;

/**
 * Slot i of a plane is [base + i*stride, +len) of the region's memory.
 */
typedef struct kvf_plane {
  /**
   * Bytes from the start of the memory.
   */
  uint64_t base;
  /**
   * Bytes from one slot to the next.
   */
  uint64_t stride;
  /**
   * Bytes of one slot's piece: the namespace's plane_bytes.
   */
  uint64_t len;
} kvf_plane;

/**
 * Where the slots of a region lie.
 */
typedef struct kvf_geometry {
  /**
   * `plane_count` of them.
   */
  const struct kvf_plane *planes;
  /**
   * At most 1024.
   */
  size_t plane_count;
  /**
   * Slots of the region.
   */
  uint32_t slots;
} kvf_geometry;

/**
 * A region as the agent has it.
 */
typedef struct kvf_region {
  /**
   * Its number, for other calls.
   */
  uint32_t region;
  /**
   * How many slots it has.
   */
  uint32_t slots;
  /**
   * True where the agent chooses slots and evicts (a pool); false where the engine does.
   */
  bool pool;
  /**
   * How many planes it has; a pool has one.
   */
  uint32_t plane_count;
  /**
   * The first plane: where the blocks of a pool lie.
   */
  struct kvf_plane first_plane;
  /**
   * The agent's lifetime.
   */
  uint64_t incarnation;
  /**
   * Of the namespace's layout; ends with a NUL.
   */
  char fingerprint[80];
} kvf_region;

/**
 * Descriptors of a region's memory: mmap() them. Both are the caller's, to be closed.
 */
typedef struct kvf_region_map {
  /**
   * The blocks.
   */
  int data;
  /**
   * The generation words, one of 64 bits per slot; never writable.
   */
  int generations;
  /**
   * Bytes of `data`.
   */
  uint64_t data_bytes;
  /**
   * Words of `generations`.
   */
  uint32_t slots;
} kvf_region_map;

/**
 * Called when a pull has something new to say: `done` is 1 exactly once, with the last call, and 0 before; a pull
 * that is freed first is not called for any more.
 * Calls of one agent handle come one after another, from one thread of the library: a slow one delays the
 * others, not the transfers. Every function may be called from it but kvf_close; also kvf_pull_free of this
 * very pull. The first call may come before kvf_pull_start has returned.
 */
typedef void (*kvf_pull_callback)(struct kvf_pull *pull, int32_t done, void *user);

/**
 * What to bring, and where to. All bits zero but `size`, `namespace_name` and `hashes` pulls into the
 * agent's pool.
 */
typedef struct kvf_pull_request {
  /**
   * sizeof(kvf_pull_request).
   */
  size_t size;
  /**
   * The namespace.
   */
  const char *namespace_name;
  /**
   * The blocks: one outcome each.
   */
  struct kvf_hashes hashes;
  /**
   * Where the blocks go in `region`, one slot per hash: `hashes.count` of them. The call reserves them.
   * NULL: into the agent's pool, where they stay pinned until they are released.
   */
  const uint32_t *slots;
  /**
   * The caller's region, where `slots` is not NULL.
   */
  uint32_t region;
  /**
   * Every outcome is there by then; 0 means 10,000; at most KVF_MAX_TIMEOUT_MS. Where the agent itself
   * has stopped answering the pull ends 2 seconds later.
   */
  uint32_t timeout_ms;
  /**
   * How long blocks in the pool stay pinned after the pull; 0 means 30,000; at most 600,000.
   */
  uint32_t pin_ttl_ms;
  /**
   * KVF_NO_REPLICA, KVF_CHAINED.
   */
  uint32_t flags;
  /**
   * With KVF_CHAINED: the first hash's parent, `hashes.hash_len` bytes, or NULL.
   */
  const uint8_t *parent;
  /**
   * Called when there is something new; NULL for never.
   */
  kvf_pull_callback callback;
  /**
   * Given to the callback.
   */
  void *user;
  /**
   * Delivery layer by layer, into slots only: the planes of the first stage, of the second, ...; each at least 1,
   * together the layout's planes. The first stage of every block comes before the second of any, and so on; see
   * kvf_pull_wait_stages. NULL: no stages, every block comes whole.
   */
  const uint32_t *stages;
  /**
   * How many `stages`.
   */
  size_t stage_count;
} kvf_pull_request;

/**
 * What became of one block. Its texts belong to the pull and last until kvf_pull_free.
 */
typedef struct kvf_outcome {
  /**
   * Which of the pull's hashes.
   */
  uint32_t index;
  /**
   * What.
   */
  enum kvf_outcome_kind kind;
  /**
   * Where it lies now (pulled and local only).
   */
  uint32_t region;
  /**
   * The slot there.
   */
  uint32_t slot;
  /**
   * That slot's generation.
   */
  uint64_t generation;
  /**
   * False where the destination may still be written to. Leave the slot alone: kvf_reserve says
   * KVF_SLOT_BUSY until it is free.
   */
  bool settled;
  /**
   * The node it came from; empty where it came from none. Never NULL.
   */
  const char *source_node;
  /**
   * How ("tcp", "shm", "rdma"); empty where it was not moved. Never NULL.
   */
  const char *transport;
  /**
   * What happened, to whom, and what to do, for people; empty on success. Never NULL.
   */
  const char *detail;
} kvf_outcome;

/**
 * What a pull that has ended amounts to.
 */
typedef struct kvf_pull_summary {
  /**
   * sizeof(kvf_pull_summary).
   */
  size_t size;
  /**
   * Blocks that were moved.
   */
  uint64_t pulled;
  /**
   * Their bytes.
   */
  uint64_t bytes;
  /**
   * Microseconds until owners were known.
   */
  uint64_t locate_us;
  /**
   * Microseconds of connecting to them.
   */
  uint64_t connect_us;
  /**
   * Microseconds of reading.
   */
  uint64_t wire_us;
  /**
   * Microseconds of all.
   */
  uint64_t total_us;
  /**
   * Releases all of the pull's blocks in the pool (kvf_release); 0 where there is nothing to release.
   */
  uint64_t pin;
} kvf_pull_summary;

/**
 * How to seal, and what came of it. All bits zero but `size` is a plain seal.
 */
typedef struct kvf_sealed {
  /**
   * sizeof(kvf_sealed).
   */
  size_t size;
  /**
   * In: wait at most this long for the coordinators to confirm; 0: do not wait; at most 60,000.
   */
  uint32_t wait_announced_ms;
  /**
   * In: KVF_CHAINED.
   */
  uint32_t flags;
  /**
   * In: with KVF_CHAINED the first hash's parent, `hash_len` bytes, or NULL.
   */
  const uint8_t *parent;
  /**
   * In: room for as many generations as there are slots, or NULL.
   */
  uint64_t *generations;
  /**
   * In: room for as many slots as there are slots, or NULL. Out: those freed, because the pool had their
   * block already.
   */
  uint32_t *duplicates;
  /**
   * Out: how many were duplicates.
   */
  size_t duplicate_count;
  /**
   * Out: 1 where every coordinator lists the blocks, 0 where one had not confirmed in time.
   */
  int announced;
} kvf_sealed;

/**
 * Numbers of an agent, counted since it started.
 */
typedef struct kvf_stats {
  /**
   * sizeof(kvf_stats).
   */
  size_t size;
  /**
   * The agent's node name; ends with a NUL.
   */
  char node[136];
  /**
   * Its lifetime.
   */
  uint64_t incarnation;
  /**
   * Regions registered now.
   */
  uint64_t regions;
  /**
   * Coordinators it is configured with.
   */
  uint64_t coordinators;
  /**
   * Those it has a session with now.
   */
  uint64_t coordinators_connected;
  /**
   * Slots reserved now.
   */
  uint64_t reservations;
  /**
   * Pins held now.
   */
  uint64_t pins;
  /**
   * Pulls under way now.
   */
  uint64_t pulls_in_flight;
  /**
   * Blocks pulled.
   */
  uint64_t blocks_pulled;
  /**
   * Bytes pulled.
   */
  uint64_t bytes_pulled;
  /**
   * Blocks that every owner had overwritten.
   */
  uint64_t blocks_stale;
  /**
   * Blocks that could not be pulled for other reasons than that nobody has them.
   */
  uint64_t blocks_failed;
  /**
   * Bytes that peers read here.
   */
  uint64_t bytes_served;
  /**
   * Peers that are not trusted with reads at the moment.
   */
  uint64_t peers_suspect;
} kvf_stats;

/**
 * Slots of a region.
 */
typedef struct kvf_region_stats {
  /**
   * Which region.
   */
  uint32_t region;
  /**
   * True for a pool.
   */
  bool pool;
  /**
   * Slots with nothing in them.
   */
  uint32_t free;
  /**
   * Slots being written.
   */
  uint32_t reserved;
  /**
   * Slots with a block.
   */
  uint32_t sealed;
  /**
   * Those of them that are pinned.
   */
  uint32_t pinned;
  /**
   * Slots that a read which has not settled may still write to.
   */
  uint32_t quarantined;
  /**
   * Blocks evicted.
   */
  uint64_t evictions;
} kvf_region_stats;

/**
 * One attribute of a source.
 */
typedef struct kvf_attribute {
  /**
   * Its key ("quantization").
   */
  const char *key;
  /**
   * Its value.
   */
  const char *value;
} kvf_attribute;

/**
 * What a set of tensors is. Whoever publishes the same promises the same bytes.
 */
typedef struct kvf_source {
  /**
   * sizeof(kvf_source).
   */
  size_t size;
  /**
   * Where its chunks are blocks: the namespace of the regions that hold them.
   */
  const char *namespace_name;
  /**
   * 1 to 256 bytes: a model's name, say.
   */
  const char *name;
  /**
   * At most 128 bytes; NULL for none.
   */
  const char *revision;
  /**
   * What else tells it apart; NULL with a count of 0.
   */
  const struct kvf_attribute *attributes;
  /**
   * How many there are.
   */
  size_t attribute_count;
  /**
   * A digest of the content where one is known, else NULL.
   */
  const uint8_t *content;
  /**
   * Its bytes, at most 64.
   */
  size_t content_bytes;
  /**
   * Ranks there are; 0 means 1.
   */
  uint32_t world_size;
} kvf_source;

/**
 * Chunks of a set that lie in consecutive slots of a region. A set's runs follow each other from chunk 0 on.
 */
typedef struct kvf_chunk_run {
  /**
   * Which region: of the caller's, not a pool.
   */
  uint32_t region;
  /**
   * Where the first chunk of the run lies.
   */
  uint32_t first_slot;
  /**
   * How many slots.
   */
  uint32_t slots;
} kvf_chunk_run;

/**
 * A tensor, contiguous in its set's chunks as if those followed each other.
 */
typedef struct kvf_tensor {
  /**
   * 1 to 512 bytes; no two of a set have the same.
   */
  const char *name;
  /**
   * As safetensors names them ("BF16").
   */
  const char *dtype;
  /**
   * `dimensions` of them; NULL for none.
   */
  const uint64_t *shape;
  /**
   * At most 16.
   */
  size_t dimensions;
  /**
   * Of its first byte, from the first chunk on.
   */
  uint64_t offset;
  /**
   * Its bytes.
   */
  uint64_t bytes;
} kvf_tensor;

/**
 * Which source: what its identity hashes to.
 */
typedef struct kvf_source_id {
  /**
   * All of it.
   */
  uint8_t bytes[16];
} kvf_source_id;

/**
 * Which set of tensors of a source's rank.
 */
typedef struct kvf_digest {
  /**
   * All of it.
   */
  uint8_t bytes[16];
} kvf_digest;

/**
 * A set of tensors of one rank, and what came of publishing it. All bits zero but `size` and what is needed.
 */
typedef struct kvf_publication {
  /**
   * sizeof(kvf_publication).
   */
  size_t size;
  /**
   * In: where the chunks lie.
   */
  const struct kvf_chunk_run *runs;
  /**
   * In: at most 64.
   */
  size_t run_count;
  /**
   * In: the tensors.
   */
  const struct kvf_tensor *tensors;
  /**
   * In: 1 to KVF_MAX_TENSORS.
   */
  size_t tensor_count;
  /**
   * In: which rank.
   */
  uint32_t rank;
  /**
   * In: 0 only announces the set; 1 seals its chunks, so that others can pull it. The memory must not be written to from
   * then on until it is withdrawn.
   */
  uint32_t ready;
  /**
   * In: KVF_UNREGISTER_WITH_IT.
   */
  uint32_t flags;
  /**
   * In: wait at most this long until every coordinator lists it; 0: do not wait; at most 60,000.
   */
  uint32_t wait_announced_ms;
  /**
   * Out: its id.
   */
  struct kvf_source_id source;
  /**
   * Out: of the tensors.
   */
  struct kvf_digest digest;
  /**
   * Out: 1 where every coordinator lists it, 0 where one had not confirmed in time.
   */
  int announced;
} kvf_publication;

/**
 * Which tensors to pull, and where to.
 */
typedef struct kvf_tensor_request {
  /**
   * sizeof(kvf_tensor_request).
   */
  size_t size;
  /**
   * Of which source.
   */
  struct kvf_source_id source;
  /**
   * Which set, where workers differ; NULL: the one with most ready workers. A pull that goes on from an earlier one names
   * the earlier one's.
   */
  const struct kvf_digest *digest;
  /**
   * Tensors wanted, by name.
   */
  const char *const *names;
  /**
   * How many names there are.
   */
  size_t name_count;
  /**
   * Tensors wanted, by what their names begin with. No names and no prefixes: all.
   */
  const char *const *prefixes;
  /**
   * How many prefixes there are.
   */
  size_t prefix_count;
  /**
   * Of which rank.
   */
  uint32_t rank;
  /**
   * The caller's region to land in, of one plane; not with KVF_FRESH_MEMORY.
   */
  uint32_t region;
  /**
   * Where in it: chunk i goes to slot first_slot + i.
   */
  uint32_t first_slot;
  /**
   * KVF_PACKED, KVF_NO_REPLICA, KVF_SERVE, KVF_FRESH_MEMORY, and with that KVF_KEEP_ON_DISCONNECT.
   */
  uint32_t flags;
  /**
   * Every outcome is there by then; 0 means 10,000; at most KVF_MAX_TIMEOUT_MS.
   */
  uint32_t timeout_ms;
  /**
   * Gives it up; NULL: nothing does.
   */
  const struct kvf_canceller *canceller;
} kvf_tensor_request;

/**
 * What a pull of tensors came to.
 */
typedef struct kvf_tensor_summary {
  /**
   * sizeof(kvf_tensor_summary).
   */
  size_t size;
  /**
   * Which set it was.
   */
  struct kvf_digest digest;
  /**
   * How many outcomes kvf_landed_at gives: one for each tensor wanted that the set has.
   */
  size_t count;
  /**
   * Where they landed: for kvf_region_describe and kvf_region_open.
   */
  uint32_t region;
  /**
   * Tensors whose bytes are here.
   */
  uint32_t tensors_here;
  /**
   * Tensors that are not.
   */
  uint32_t tensors_failed;
  /**
   * Names that the set does not have.
   */
  uint32_t names_unknown;
  /**
   * Chunks pulled by this call.
   */
  uint32_t chunks_pulled;
  /**
   * Chunks that were here before.
   */
  uint32_t chunks_here_before;
  /**
   * Times the rest was asked for anew.
   */
  uint32_t rounds;
  /**
   * 1: it is published here now.
   */
  uint32_t serving;
  /**
   * Bytes pulled by this call.
   */
  uint64_t bytes_pulled;
  /**
   * Microseconds in all.
   */
  uint64_t total_us;
} kvf_tensor_summary;

/**
 * What became of one tensor. Its texts and its shape belong to the outcomes it came with.
 */
typedef struct kvf_landed_tensor {
  /**
   * sizeof(kvf_landed_tensor).
   */
  size_t size;
  /**
   * Which tensor.
   */
  struct kvf_tensor tensor;
  /**
   * A kvf_outcome_kind: its bytes are here with KVF_OUTCOME_PULLED and KVF_OUTCOME_LOCAL.
   */
  uint32_t kind;
  /**
   * Of its first byte in the region's memory, where it is here.
   */
  uint64_t region_offset;
  /**
   * What happened, to whom, and what to do, for people. Empty on success.
   */
  const char *detail;
} kvf_landed_tensor;

/**
 * A set of tensors of a rank.
 */
typedef struct kvf_tensor_set {
  /**
   * sizeof(kvf_tensor_set).
   */
  size_t size;
  /**
   * Which set: for pulls that are to get this one.
   */
  struct kvf_digest digest;
  /**
   * Bytes of a chunk: a block of the namespace.
   */
  uint64_t chunk_bytes;
  /**
   * Chunks it lies in.
   */
  uint32_t chunks;
  /**
   * How many tensors there are.
   */
  size_t count;
} kvf_tensor_set;

/**
 * A source in a list, or its standing. Its texts belong to the list, or to the workers, that it came with.
 */
typedef struct kvf_source_summary {
  /**
   * sizeof(kvf_source_summary).
   */
  size_t size;
  /**
   * Its id.
   */
  struct kvf_source_id source;
  /**
   * Of its chunks.
   */
  const char *namespace_name;
  /**
   * Its name.
   */
  const char *name;
  /**
   * Its revision; may be empty.
   */
  const char *revision;
  /**
   * Ranks there are.
   */
  uint32_t world_size;
  /**
   * A kvf_source_state.
   */
  uint32_t state;
  /**
   * Ranks with a worker that is ready.
   */
  uint32_t ranks_ready;
  /**
   * Workers that are not complete yet.
   */
  uint32_t workers_initialising;
  /**
   * Workers that can be pulled from.
   */
  uint32_t workers_ready;
  /**
   * Workers that may not be what they were.
   */
  uint32_t workers_stale;
  /**
   * Workers that have ended lately.
   */
  uint32_t workers_gone;
  /**
   * Tensors of all ranks that have live workers.
   */
  uint64_t tensors;
  /**
   * Their bytes.
   */
  uint64_t bytes;
} kvf_source_summary;

/**
 * One node's set of tensors for one rank.
 */
typedef struct kvf_worker {
  /**
   * sizeof(kvf_worker).
   */
  size_t size;
  /**
   * Its node; belongs to the workers it came with.
   */
  const char *node;
  /**
   * The node's lifetime.
   */
  uint64_t incarnation;
  /**
   * How long it has been in its state.
   */
  uint64_t ms_in_state;
  /**
   * Its rank.
   */
  uint32_t rank;
  /**
   * A kvf_source_state.
   */
  uint32_t state;
  /**
   * A kvf_source_cause.
   */
  uint32_t cause;
  /**
   * Readers that reported it lately.
   */
  uint32_t reporters;
  /**
   * Of its tensors.
   */
  struct kvf_digest digest;
} kvf_worker;

/**
 * What came of a put.
 */
typedef struct kvf_put_result {
  /**
   * Blocks that are there now and were not before.
   */
  uint64_t stored;
  /**
   * Blocks that were there already.
   */
  uint64_t present;
  /**
   * 1 where every coordinator lists the blocks, 0 where one had not confirmed in time.
   */
  int announced;
} kvf_put_result;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Connects to an agent and asks it who it is. Tries until connect_timeout_ms, so that an engine may start
 * before its agent. `*agent` is then the caller's, to be given to kvf_close.
 */
enum kvf_status kvf_open(const struct kvf_options *options,
                         struct kvf_agent **agent,
                         struct kvf_error *error);

/**
 * Ends the connection: gives up every pull that is under way, waits for a callback that is running, and
 * frees the handle. Pulls are still to be freed, before or after. NULL is nothing to close. Within 3
 * seconds, and as long as callbacks take. KVF_WRONG_THREAD from a callback: the handle stays.
 *
 * Of kvf_embed: then ends the agent. Coordinators are told, other processes' calls end, and its sockets, memory and
 * threads are given back; within 9 seconds more. KVF_FENCED: closed, and the agent had ended before, because
 * another one took over its name; KVF_DEADLINE: closed, and something that was still under way was dropped.
 *
 * The last call with this handle.
 */
enum kvf_status kvf_close(struct kvf_agent *agent,
                          struct kvf_error *error);

/**
 * Which blocks could be had, and from where: `places` has room for one per hash, `*answered` is how many were
 * written. With `prefix` not 0 only the longest run from the first hash on is answered. An error is never
 * a miss. Within timeout_ms (0 means 2,000; at most 60,000) and call_timeout_ms.
 */
enum kvf_status kvf_lookup(const struct kvf_agent *agent,
                           const char *namespace_name,
                           const struct kvf_hashes *hashes_of,
                           int prefix,
                           uint32_t timeout_ms,
                           enum kvf_place *places,
                           size_t *answered,
                           struct kvf_error *error);

/**
 * Promises not to reuse the slots of these blocks of this agent for ttl_ms (0 means 30,000; at most 600,000).
 * `blocks` has room for one per hash; `*pin` is for kvf_release. Within call_timeout_ms.
 */
enum kvf_status kvf_pin(const struct kvf_agent *agent,
                        const char *namespace_name,
                        const struct kvf_hashes *hashes_of,
                        uint32_t ttl_ms,
                        struct kvf_pinned *blocks,
                        uint64_t *pin,
                        struct kvf_error *error);

/**
 * Releases a pin: of kvf_pin, or of a pull's summary. KVF_PIN_UNKNOWN where it has expired. Within
 * call_timeout_ms.
 */
enum kvf_status kvf_release(const struct kvf_agent *agent, uint64_t pin, struct kvf_error *error);

/**
 * Drops blocks of this agent; pinned ones stay. `hashes_of` NULL: all of the namespace. `evicted` may be
 * NULL. Within call_timeout_ms.
 */
enum kvf_status kvf_evict(const struct kvf_agent *agent,
                          const char *namespace_name,
                          const struct kvf_hashes *hashes_of,
                          struct kvf_evicted *evicted,
                          struct kvf_error *error);

/**
 * Makes one. `*canceller` is then the caller's, to be given to kvf_canceller_free.
 */
enum kvf_status kvf_canceller_new(struct kvf_canceller **canceller, struct kvf_error *error);

/**
 * Gives up all calls that were given it, also those to come: they end soon, with KVF_CANCELLED. Nothing to do for those
 * that have ended. Never waits.
 */
enum kvf_status kvf_cancel(const struct kvf_canceller *canceller,
                           struct kvf_error *error);

/**
 * Frees one. Calls that were given it go on, and are not given up any more. NULL is nothing to free.
 *
 * The last call with it.
 */
void kvf_canceller_free(struct kvf_canceller *canceller);

/**
 * Starts an agent within this process, the same as `kvferry agent` with these settings, and opens a connection to it.
 * `*agent` is then as kvf_open gives it, and kvf_close ends the agent, too. Any number of agents may be in one process,
 * each with a node name, ports and a socket of its own; other processes may use it by its socket. It takes no
 * signals and writes no log of its own. KVF_INVALID_ARGUMENT: a setting that cannot be; KVF_SYSTEM: a port, socket or
 * device that is not to be had. Within 35 seconds; it waits for no coordinator.
 *
 * `options.log_user` is used from threads of the library until kvf_close has returned, or this has
 * without success.
 */
enum kvf_status kvf_embed(const struct kvf_embed_options *options,
                          struct kvf_agent **agent,
                          struct kvf_error *error);

/**
 * Where an embedded agent is to be found. `addresses.size` is to be set. KVF_INVALID_ARGUMENT for a handle of kvf_open.
 */
enum kvf_status kvf_embed_addresses(const struct kvf_agent *agent,
                                    struct kvf_addresses *addresses,
                                    struct kvf_error *error);

/**
 * As kvf_register_path, for memory on a GPU, from cuMemAlloc or cudaMalloc. Reserve slots before the kernel that overwrites
 * them is launched; seal them after its stream was synchronised. Keep the memory allocated until kvf_unregister
 * has said KVF_OK: only then has the agent closed it. KVF_GPU_UNAVAILABLE: the agent does not have that GPU;
 * KVF_GPU_HANDLE: the handle does not open; the message says what to do. There are no flags: a region of GPU memory
 * always ends with the connection. Within 120 seconds: a GPU may have to be opened.
 */
enum kvf_status kvf_register_cuda_ipc(const struct kvf_agent *agent,
                                      const struct kvf_namespace *namespace_of,
                                      const struct kvf_cuda_ipc *memory,
                                      const struct kvf_geometry *geometry_of,
                                      uint32_t flags_given,
                                      struct kvf_region *region,
                                      struct kvf_error *error);

/**
 * Opens a region's memory: to read blocks in a pool that are pinned, or, with `writable` not 0, to write to
 * slots that kvf_reserve_pool gave. Nothing but pinned or reserved slots may be relied on. Within
 * call_timeout_ms.
 */
enum kvf_status kvf_region_open(const struct kvf_agent *agent,
                                uint32_t region,
                                int writable,
                                struct kvf_region_map *map,
                                struct kvf_error *error);

/**
 * Starts a pull and returns at once. `*pull` is then the caller's, to be given to kvf_pull_free. Every hash
 * gets exactly one outcome, whatever happens; also where the agent refuses the pull. At most KVF_MAX_PULLS
 * of one handle exist at a time.
 *
 * `request.user` is used from a thread of the library until the callback's last call
 * has returned, or kvf_pull_free has.
 */
enum kvf_status kvf_pull_start(const struct kvf_agent *agent,
                               const struct kvf_pull_request *request,
                               struct kvf_pull **pull,
                               struct kvf_error *error);

/**
 * Gives outcomes that were not given before, in the order in which they came: at most `room` of them into
 * `outcomes`, their number into `*given`. `*done` is 1 where all have been given and no more will come.
 * Never waits. NULL with a room of 0 only asks.
 */
enum kvf_status kvf_pull_poll(const struct kvf_pull *pull,
                              struct kvf_outcome *outcomes,
                              size_t room,
                              size_t *given,
                              int *done,
                              struct kvf_error *error);

/**
 * Waits until the pull has ended, for at most timeout_ms (at most KVF_MAX_TIMEOUT_MS; 0 only asks).
 * KVF_OK: every block has its outcome, as kvf_pull_poll gives them; KVF_NOT_DONE: it has not ended yet; anything
 * else: it has ended, and why.
 */
enum kvf_status kvf_pull_wait(const struct kvf_pull *pull,
                              uint32_t timeout_ms,
                              struct kvf_error *error);

/**
 * How many of the pull's stages have landed in the slots of every block that has no outcome yet; never fewer than it said
 * before. Planes that have landed are the block's and are not written to any more, whatever becomes of the later ones;
 * a block with an outcome is whole (pulled, local) or to be computed. Never waits.
 */
enum kvf_status kvf_pull_stages_landed(const struct kvf_pull *pull,
                                       uint32_t *landed,
                                       struct kvf_error *error);

/**
 * Waits until the first `stages` stages have landed (kvf_pull_stages_landed) or the pull has ended, for at most timeout_ms
 * (at most KVF_MAX_TIMEOUT_MS; 0 only asks). KVF_OK: every block has them, or its outcome: poll for the outcomes, a block
 * that failed is among them; KVF_NOT_DONE: not yet; anything else: the pull has ended before, and why.
 */
enum kvf_status kvf_pull_wait_stages(const struct kvf_pull *pull,
                                     uint32_t stages,
                                     uint32_t timeout_ms,
                                     struct kvf_error *error);

/**
 * An eventfd that can be read (by poll, epoll, an event loop) exactly while kvf_pull_poll has something new to
 * say: outcomes, or that the pull has ended; of a pull in stages also while kvf_pull_stages_landed has. It stays the
 * pull's: neither read nor close it; it is closed by kvf_pull_free. Made by the first call.
 */
enum kvf_status kvf_pull_eventfd(const struct kvf_pull *pull,
                                 int *descriptor,
                                 struct kvf_error *error);

/**
 * What a pull that has ended amounts to; otherwise as kvf_pull_wait with 0. `summary.size` is to be set.
 */
enum kvf_status kvf_pull_summary_of(const struct kvf_pull *pull,
                                    struct kvf_pull_summary *summary,
                                    struct kvf_error *error);

/**
 * Gives a pull up: its remaining blocks get KVF_OUTCOME_CANCELLED soon. Nothing to do where it has ended.
 * Their slots may still be written to: kvf_reserve says KVF_SLOT_BUSY until they are free.
 */
enum kvf_status kvf_pull_cancel(const struct kvf_pull *pull,
                                struct kvf_error *error);

/**
 * Frees a pull, in whatever state: one under way is given up first. Its texts and its eventfd end; its
 * callback is not called any more, and if it is running in another thread this waits for it. NULL is
 * nothing to free.
 *
 * The last call with this pull.
 */
void kvf_pull_free(struct kvf_pull *pull);

/**
 * Registers a file that the caller mapped, by its absolute path (in /dev/shm, say), as a region of a
 * namespace. Flags: KVF_KEEP_ON_DISCONNECT. Within 120 seconds: memory is mapped.
 */
enum kvf_status kvf_register_path(const struct kvf_agent *agent,
                                  const struct kvf_namespace *namespace_of,
                                  const char *path,
                                  const struct kvf_geometry *geometry_of,
                                  uint32_t flags_given,
                                  struct kvf_region *region,
                                  struct kvf_error *error);

/**
 * As kvf_register_path, for memory that has no name: a memfd, or an unlinked file. The descriptor stays the
 * caller's; the agent gets one of its own.
 *
 * `descriptor` is open.
 */
enum kvf_status kvf_register_fd(const struct kvf_agent *agent,
                                const struct kvf_namespace *namespace_of,
                                int descriptor,
                                const struct kvf_geometry *geometry_of,
                                uint32_t flags_given,
                                struct kvf_region *region,
                                struct kvf_error *error);

/**
 * Makes the namespace's pool: the agent's own memory, which it fills and evicts by itself. `bytes` 0: as
 * the agent is configured. KVF_POOL_EXISTS where there is one. Flags: KVF_HUGEPAGES. Within 120 seconds:
 * memory is cleared.
 */
enum kvf_status kvf_register_pool(const struct kvf_agent *agent,
                                  const struct kvf_namespace *namespace_of,
                                  uint64_t bytes,
                                  uint32_t flags_given,
                                  struct kvf_region *region,
                                  struct kvf_error *error);

/**
 * A region as the agent has it: for one that an outcome names, a pool, say. KVF_REGION_UNKNOWN: it has
 * ended. Within call_timeout_ms.
 */
enum kvf_status kvf_region_describe(const struct kvf_agent *agent,
                                    uint32_t region,
                                    struct kvf_region *description,
                                    struct kvf_error *error);

/**
 * Ends a region: its blocks are gone at once, and with KVF_OK nothing writes to its memory any more. With
 * KVF_MEMORY_IN_USE or KVF_DEADLINE something may still do: call it again before the memory is reused.
 * `*blocks_removed` may be NULL. Within 12 seconds.
 */
enum kvf_status kvf_unregister(const struct kvf_agent *agent,
                               uint32_t region,
                               uint64_t *blocks_removed,
                               struct kvf_error *error);

/**
 * Reserves these slots of the caller's region for writing. Blocks that are sealed in them are removed first,
 * and nobody takes their bytes for blocks when this returns. All or none. Within call_timeout_ms.
 */
enum kvf_status kvf_reserve(const struct kvf_agent *agent,
                            uint32_t region,
                            const uint32_t *slots,
                            size_t slot_count,
                            struct kvf_error *error);

/**
 * Takes `slot_count` slots of a pool for writing, into `slots`; the agent chooses them, and evicts to make
 * room. All or none. Write to them through kvf_region_open. Within call_timeout_ms.
 */
enum kvf_status kvf_reserve_pool(const struct kvf_agent *agent,
                                 uint32_t region,
                                 uint32_t *slots,
                                 size_t slot_count,
                                 struct kvf_error *error);

/**
 * Declares reserved slots complete: slot i holds the block with hash i. Peers can read them when this
 * returns. `sealed` may be NULL. Within call_timeout_ms and wait_announced_ms.
 */
enum kvf_status kvf_seal(const struct kvf_agent *agent,
                         uint32_t region,
                         const uint32_t *slots,
                         const struct kvf_hashes *hashes_of,
                         struct kvf_sealed *sealed,
                         struct kvf_error *error);

/**
 * Gives reserved slots back unsealed. Within call_timeout_ms.
 */
enum kvf_status kvf_abort(const struct kvf_agent *agent,
                          uint32_t region,
                          const uint32_t *slots,
                          size_t slot_count,
                          struct kvf_error *error);

/**
 * The agent's numbers. `stats.size` is to be set. Within call_timeout_ms.
 */
enum kvf_status kvf_stats_get(const struct kvf_agent *agent,
                              struct kvf_stats *stats,
                              struct kvf_error *error);

/**
 * The regions' numbers: at most `room` of them into `regions`; `*count` is how many there are. Within
 * call_timeout_ms.
 */
enum kvf_status kvf_stats_regions(const struct kvf_agent *agent,
                                  struct kvf_region_stats *regions,
                                  size_t room,
                                  size_t *count,
                                  struct kvf_error *error);

/**
 * The name of a status ("KVF_SLOT_BUSY"); "?" for a number that is none. Lasts as long as the process.
 */
const char *kvf_status_text(uint32_t status);

/**
 * Publishes a set of tensors that lies in regions of the caller's. Again with `ready` 1 moves it from announced to ready.
 * KVF_SOURCE_EXISTS: other tensors are published under that name here. Within 120 seconds and wait_announced_ms: where
 * the namespace has checksums, every byte is read.
 */
enum kvf_status kvf_tensors_publish(const struct kvf_agent *agent,
                                    const struct kvf_source *source,
                                    struct kvf_publication *publication,
                                    struct kvf_error *error);

/**
 * Ends a publication of this agent's: its chunks are gone at once, and others are told. `*withdrawn` (may be NULL) is 0 where
 * nothing of that name was published. Within call_timeout_ms.
 */
enum kvf_status kvf_tensors_withdraw(const struct kvf_agent *agent,
                                     const struct kvf_source_id *source,
                                     uint32_t rank,
                                     int *withdrawn,
                                     struct kvf_error *error);

/**
 * Brings tensors here, and waits for it. KVF_OK: each has its outcome in `*landed`, which is the caller's, to be given to
 * kvf_landed_free; `summary` (its size is to be set) says how many came. What has landed stays in the region's slots: call again
 * to go on with the rest. KVF_SOURCE_UNKNOWN, KVF_SOURCE_NOT_READY: there is nothing to pull. Within timeout_ms and 2
 * seconds.
 *
 * KVF_CANCELLED, soon after kvf_cancel: there are no outcomes, and `summary` says of which set it was and where it was
 * landing; nothing but zeros where it had not begun. What has landed stays here, too. Slots of the rest may still be written
 * to: kvf_reserve says KVF_SLOT_BUSY until they are free. With KVF_FRESH_MEMORY the region is there: pull on into it, or
 * kvf_unregister it.
 */
enum kvf_status kvf_tensors_pull(const struct kvf_agent *agent,
                                 const struct kvf_tensor_request *request,
                                 struct kvf_tensor_summary *summary,
                                 struct kvf_landed **landed,
                                 struct kvf_error *error);

/**
 * What became of one of the tensors, from 0 on. `tensor.size` is to be set.
 */
enum kvf_status kvf_landed_at(const struct kvf_landed *landed,
                              size_t index,
                              struct kvf_landed_tensor *tensor,
                              struct kvf_error *error);

/**
 * Frees outcomes, with their texts. NULL is nothing to free.
 *
 * The last call with these.
 */
void kvf_landed_free(struct kvf_landed *landed);

/**
 * The tensors of a source's rank: `*set` says what there is (its size is to be set), and `*tensors` are the caller's, to be given
 * to kvf_tensors_free. `digest`: of the set wanted where workers differ; NULL: the one with most ready workers.
 * KVF_SOURCE_UNKNOWN: there is none. Within call_timeout_ms for each 8,192 tensors.
 */
enum kvf_status kvf_source_tensors(const struct kvf_agent *agent,
                                   const struct kvf_source_id *source,
                                   uint32_t rank,
                                   const struct kvf_digest *digest_of,
                                   struct kvf_tensor_set *set,
                                   struct kvf_tensors **tensors,
                                   struct kvf_error *error);

/**
 * One of the tensors, from 0 on. Its texts and its shape belong to the tensors.
 */
enum kvf_status kvf_tensors_at(const struct kvf_tensors *tensors,
                               size_t index,
                               struct kvf_tensor *tensor,
                               struct kvf_error *error);

/**
 * Frees tensors, with their texts. NULL is nothing to free.
 *
 * The last call with these.
 */
void kvf_tensors_free(struct kvf_tensors *tensors);

/**
 * The sources that coordinators know of, in `*sources`, which is then the caller's, to be given to kvf_sources_free; their
 * number in `*count`. NULL for namespace_name or name_prefix: of every namespace, of every name. More than KVF_MAX_SOURCES:
 * KVF_BOUND_REACHED. Within call_timeout_ms for each thousand.
 */
enum kvf_status kvf_sources_list(const struct kvf_agent *agent,
                                 const char *namespace_name,
                                 const char *name_prefix,
                                 struct kvf_sources **sources,
                                 size_t *count,
                                 struct kvf_error *error);

/**
 * One of the sources, from 0 on. `source.size` is to be set.
 */
enum kvf_status kvf_sources_at(const struct kvf_sources *sources,
                               size_t index,
                               struct kvf_source_summary *source,
                               struct kvf_error *error);

/**
 * Frees sources, with their texts. NULL is nothing to free.
 *
 * The last call with these.
 */
void kvf_sources_free(struct kvf_sources *sources);

/**
 * How a source stands, and its workers, by rank and node, in `*workers`: the caller's, to be given to kvf_workers_free; their
 * number in `*count`. `summary` may be NULL; else its size is to be set, and its texts belong to the workers.
 * KVF_SOURCE_UNKNOWN: there is none. Within call_timeout_ms.
 */
enum kvf_status kvf_source_status(const struct kvf_agent *agent,
                                  const struct kvf_source_id *source,
                                  struct kvf_source_summary *summary,
                                  struct kvf_workers **workers,
                                  size_t *count,
                                  struct kvf_error *error);

/**
 * One of the workers, from 0 on. `worker.size` is to be set.
 */
enum kvf_status kvf_workers_at(const struct kvf_workers *workers,
                               size_t index,
                               struct kvf_worker *worker,
                               struct kvf_error *error);

/**
 * Frees workers, with their texts. NULL is nothing to free.
 *
 * The last call with these.
 */
void kvf_workers_free(struct kvf_workers *workers);

/**
 * Ends workers of a source: they are offered no more at once, and their agents withdraw them. `node`: only this one's; NULL:
 * all. `*workers_removed` may be NULL. KVF_SOURCE_UNKNOWN: there is none. Within call_timeout_ms.
 */
enum kvf_status kvf_source_remove(const struct kvf_agent *agent,
                                  const struct kvf_source_id *source,
                                  const char *node,
                                  uint32_t *workers_removed,
                                  struct kvf_error *error);

/**
 * Copies blocks into the namespace's pool: reserve, write and seal in one. `data` holds the blocks back to
 * back, `data_bytes` in all. Flags: KVF_CHAINED, with `parent_of` the first hash's parent or NULL.
 * `result` may be NULL. Within timeout_ms (0 means 30,000; at most KVF_MAX_TIMEOUT_MS) and
 * wait_announced_ms (at most 60,000).
 */
enum kvf_status kvf_put(const struct kvf_agent *agent,
                        const char *namespace_name,
                        const struct kvf_hashes *hashes_of,
                        const uint8_t *data,
                        size_t data_bytes,
                        uint32_t flags_given,
                        const uint8_t *parent_of,
                        uint32_t timeout_ms,
                        uint32_t wait_announced_ms,
                        struct kvf_put_result *result,
                        struct kvf_error *error);

/**
 * The KVF_ABI_VERSION the library was made with. A program compares it with its header's before it
 * calls anything else.
 */
uint32_t kvf_abi_version(void);

/**
 * The library's version, for people ("0.1.0"). Lasts as long as the process.
 */
const char *kvf_version(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* KVFERRY_H */
