/* embed COORDINATOR_URL FOLDER: agents within this process. What cannot be is refused, they work like any other, and
 * when they are closed nothing of them is left: no thread, no descriptor, no memory, no name at the coordinator. */
#include "check.h"

#include <ctype.h>
#include <dirent.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <arpa/inet.h>

static const char *url, *folder;
static kvf_error error;

/* What a test says of an agent, with `more` of it. */
static kvf_status start(const char *node, const char *key, const char *value, kvf_embed_options *options,
                        kvf_agent **agent) {
    char socket[100];
    snprintf(socket, sizeof socket, "%s/%s.sock", folder, node);
    kvf_setting settings[8] = {{"node", node},
                               {"coordinators", url},
                               {"listen_peer", "127.0.0.1:0"},
                               {"listen_data", "127.0.0.1:0"},
                               {"listen_metrics", "off"},
                               {"socket", socket},
                               {"pool_bytes", "2MiB"},
                               {key, value}};
    kvf_embed_options plain = {.size = sizeof plain};
    if (options == NULL) options = &plain;
    options->settings = settings;
    options->setting_count = key == NULL ? 7 : 8;
    return kvf_embed(options, agent, &error);
}

static kvf_agent *embed(const char *node) {
    kvf_agent *agent = NULL;
    EXPECT(KVF_OK, start(node, NULL, NULL, NULL, &agent));
    return agent;
}

static int entries(const char *path) {
    DIR *dir = opendir(path);
    CHECK(dir != NULL);
    int count = 0;
    while (readdir(dir) != NULL) count++;
    closedir(dir);
    return count;
}

static int threads(void) { return entries("/proc/self/task"); }
static int descriptors(void) { return entries("/proc/self/fd"); }

static void is_refused(void) {
    kvf_agent *agent = NULL;
    EXPECT(KVF_INVALID_ARGUMENT, start("r", "pool-bytes", "1GiB", NULL, &agent));
    CHECK(strstr(error.message, "did you mean `pool_bytes`?") != NULL);
    EXPECT(KVF_INVALID_ARGUMENT, start("r", "pool_bytes", "many", NULL, &agent));
    CHECK(strstr(error.message, "pool_bytes=many") != NULL);
    EXPECT(KVF_INVALID_ARGUMENT, start("r", "stall_bound_ms", "1", NULL, &agent));
    EXPECT(KVF_INVALID_ARGUMENT, start("r", "listen_peer", "0.0.0.0:0", NULL, &agent));
    EXPECT(KVF_INVALID_ARGUMENT, start("r", "tls_cert", "/nowhere", NULL, &agent));
    EXPECT(KVF_INVALID_ARGUMENT, start("r", NULL, "x", NULL, NULL));
    kvf_embed_options options = {.size = sizeof options, .worker_threads = KVF_MAX_WORKER_THREADS + 1};
    EXPECT(KVF_INVALID_ARGUMENT, start("r", NULL, NULL, &options, &agent));
    options = (kvf_embed_options){.size = sizeof options, .log_level = 9};
    EXPECT(KVF_INVALID_ARGUMENT, start("r", NULL, NULL, &options, &agent));
    options = (kvf_embed_options){.size = sizeof options, .settings_file = "/nowhere/agent.toml"};
    EXPECT(KVF_INVALID_ARGUMENT, start("r", NULL, NULL, &options, &agent));

    /* A port that is taken. */
    int taken = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    CHECK(bind(taken, (struct sockaddr *)&at, len) == 0 && listen(taken, 1) == 0);
    CHECK(getsockname(taken, (struct sockaddr *)&at, &len) == 0);
    char address[32];
    snprintf(address, sizeof address, "127.0.0.1:%d", (int)ntohs(at.sin_port));
    EXPECT(KVF_SYSTEM, start("r", "listen_peer", address, NULL, &agent));
    CHECK(strstr(error.message, address) != NULL && agent == NULL);
    close(taken);
}

/* Its settings can come from a file. */
static void from_a_file(void) {
    char path[120], socket[120];
    snprintf(path, sizeof path, "%s/agent.toml", folder);
    FILE *file = fopen(path, "w");
    CHECK(file != NULL);
    fprintf(file, "node = \"file\"\ncoordinators = [\"%s\"]\nlisten_peer = \"127.0.0.1:0\"\n", url);
    fprintf(file, "listen_data = \"127.0.0.1:0\"\nlisten_metrics = \"127.0.0.1:0\"\nsocket = \"/nowhere/x\"\n");
    fclose(file);
    snprintf(socket, sizeof socket, "%s/over.sock", folder);
    kvf_setting over = {"socket", socket};
    kvf_embed_options options = {
        .size = sizeof options, .settings_file = path, .settings = &over, .setting_count = 1, .worker_threads = 2};
    kvf_agent *agent;
    EXPECT(KVF_OK, kvf_embed(&options, &agent, &error));
    kvf_addresses found = {.size = sizeof found};
    EXPECT(KVF_OK, kvf_embed_addresses(agent, &found, &error));
    CHECK(strcmp(found.node, "file") == 0 && strcmp(found.socket, socket) == 0 && found.incarnation > 0);
    CHECK(strncmp(found.metrics, "127.0.0.1:", 10) == 0 && strncmp(found.peer, "127.0.0.1:", 10) == 0);

    /* Others use it by its socket; whoever only connected knows no addresses and ends no agent. */
    kvf_agent *other = connect_with(found.socket, 0);
    EXPECT(KVF_INVALID_ARGUMENT, kvf_embed_addresses(other, &found, &error));
    EXPECT(KVF_OK, kvf_close(other, &error));
    kvf_stats stats = {.size = sizeof stats};
    EXPECT(KVF_OK, kvf_stats_get(agent, &stats, &error));
    CHECK(strcmp(stats.node, "file") == 0);
    EXPECT(KVF_OK, kvf_close(agent, &error));
    CHECK(access(socket, F_OK) != 0);
    unlink(path);
}

/* The library's threads run none of the host's handlers, and get no SIGPIPE. */
static void takes_no_signals(void) {
    DIR *tasks = opendir("/proc/self/task");
    CHECK(tasks != NULL);
    int ours = 0;
    for (struct dirent *task; (task = readdir(tasks)) != NULL;) {
        if (!isdigit((unsigned char)task->d_name[0])) continue;
        char path[300], line[256];
        unsigned long long blocked = 0;
        int is_ours = 0;
        snprintf(path, sizeof path, "/proc/self/task/%s/status", task->d_name);
        FILE *file = fopen(path, "r");
        if (file == NULL) continue; /* it has ended */
        while (fgets(line, sizeof line, file) != NULL) {
            is_ours |= strncmp(line, "Name:\tkvferry", 13) == 0;
            sscanf(line, "SigBlk:\t%llx", &blocked);
        }
        fclose(file);
        if (!is_ours) continue;
        ours++;
        CHECK(blocked >> (SIGPIPE - 1) & 1 && blocked >> (SIGTERM - 1) & 1 && blocked >> (SIGINT - 1) & 1);
        CHECK(!(blocked >> (SIGSEGV - 1) & 1));
    }
    closedir(tasks);
    CHECK(ours >= 4); /* kvferry-agent, two kvferry-io, kvferry-call */
}

/* Blocks go from one embedded agent to another, and are gone with their owner. */
static void carries(void) {
    kvf_agent *a = embed("a"), *b = embed("b"), *c = embed("c");
    takes_no_signals();
    kvf_namespace space = space_of("embedded");
    uint8_t *from, *to, hashes[SLOTS * HASH];
    uint32_t region_a = region_of(a, &space, &from), region_b = region_of(b, &space, &to), slots[SLOTS];
    publish(a, region_a, from, 1, SLOTS);
    hash_them(hashes, 1, SLOTS);
    slots_from(slots, 0, SLOTS);
    kvf_pull_request request = pull_of(space.name, hashes, SLOTS);
    request.slots = slots;
    request.region = region_b;
    request.flags = KVF_NO_REPLICA;
    kvf_pull *pull, *late;
    EXPECT(KVF_OK, kvf_pull_start(b, &request, &pull, &error));
    EXPECT(KVF_OK, kvf_pull_wait(pull, 120000, &error));
    all_are(pull, SLOTS, KVF_OUTCOME_PULLED);
    for (uint32_t i = 0; i < SLOTS; i++) CHECK(to[i * BLOCK] == (uint8_t)(1 + i));
    kvf_pull_free(pull);
    /* What was pulled is held here, too: away with it, or nothing needs to be pulled. */
    EXPECT(KVF_OK, kvf_evict(b, space.name, NULL, NULL, &error));

    EXPECT(KVF_OK, kvf_close(a, &error));
    kvf_hashes gone = {.bytes = hashes, .hash_len = HASH, .count = 1};
    kvf_place place = KVF_PLACE_REMOTE;
    for (double began = now(); place != KVF_PLACE_MISSING; usleep(1000)) {
        size_t answered;
        EXPECT(KVF_OK, kvf_lookup(b, space.name, &gone, 0, 60000, &place, &answered, &error));
        CHECK(now() - began < PATIENCE); /* until the coordinator has read the goodbye */
    }
    EXPECT(KVF_OK, kvf_pull_start(c, &request, &late, &error)); /* ends in whatever way, with its agent */
    request.slots = NULL;
    EXPECT(KVF_OK, kvf_pull_start(b, &request, &pull, &error));
    EXPECT(KVF_OK, kvf_pull_wait(pull, 120000, &error));
    all_are(pull, SLOTS, KVF_OUTCOME_MISSING);
    kvf_pull_free(pull);
    EXPECT(KVF_OK, kvf_close(c, &error));
    EXPECT(KVF_OK, kvf_close(b, &error));
    int done = 0;
    size_t given = 0;
    kvf_outcome outcomes[SLOTS];
    EXPECT(KVF_OK, kvf_pull_poll(late, outcomes, SLOTS, &given, &done, &error));
    CHECK(given == SLOTS && done);
    kvf_pull_free(late);
    munmap(from, SLOTS * BLOCK);
    munmap(to, SLOTS * BLOCK);
}

static void *close_it(void *agent) {
    kvf_error error;
    EXPECT(KVF_OK, kvf_close(agent, &error));
    return NULL;
}

/* An agent that stops makes an engine's words odd before the engine hears of it, whose memory is its own from then on. */
static void ends_regions_first(void) {
    kvf_agent *agent = embed("stops");
    kvf_addresses at = {.size = sizeof at};
    EXPECT(KVF_OK, kvf_embed_addresses(agent, &at, &error));
    kvf_agent *engine = connect_with(at.socket, 0);
    kvf_namespace space = space_of("stops");
    uint8_t *memory;
    uint32_t region = region_of(engine, &space, &memory);
    publish(engine, region, memory, 1, 8);
    kvf_region_map map;
    EXPECT(KVF_OK, kvf_region_open(engine, region, 0, &map, &error));
    const uint64_t *words = mmap(NULL, map.slots * sizeof *words, PROT_READ, MAP_SHARED, map.generations, 0);
    CHECK(words != MAP_FAILED && words[0] > 0 && words[0] % 2 == 0);
    pthread_t closing;
    CHECK(pthread_create(&closing, NULL, close_it, agent) == 0);
    kvf_stats stats = {.size = sizeof stats};
    /* Looked at when the engine hears of it, not when all is over. */
    while (kvf_stats_get(engine, &stats, &error) == KVF_OK) {}
    for (int i = 0; i < 8; i++) CHECK(words[i] % 2 == 1);
    CHECK(error.status == KVF_AGENT_LOST);
    CHECK(pthread_join(closing, NULL) == 0);
    EXPECT(KVF_AGENT_LOST, kvf_stats_get(engine, &stats, &error));
    EXPECT(KVF_OK, kvf_close(engine, &error));
    munmap((void *)(size_t)words, map.slots * sizeof *words);
    munmap(memory, SLOTS * BLOCK);
    close(map.data);
    close(map.generations);
}

struct heard {
    pthread_mutex_t lock;
    kvf_agent *other;
    int lines, stopping, called;
};

static void on_log(uint32_t level, const char *part, const char *line, void *user) {
    struct heard *heard = user;
    pthread_mutex_lock(&heard->lock);
    CHECK(level >= KVF_LOG_ERROR && level <= KVF_LOG_INFO && part[0] != 0 && line[0] != 0);
    heard->lines++;
    heard->stopping |= strcmp(line, "stopping") == 0;
    /* The library would wait for itself. */
    kvf_error mine;
    kvf_stats stats = {.size = sizeof stats};
    heard->called = kvf_stats_get(heard->other, &stats, &mine);
    pthread_mutex_unlock(&heard->lock);
}

static void says(kvf_agent *other) {
    struct heard heard = {.lock = PTHREAD_MUTEX_INITIALIZER, .other = other};
    kvf_embed_options options = {
        .size = sizeof options, .log = on_log, .log_user = &heard, .log_level = KVF_LOG_INFO, .worker_threads = 3};
    kvf_agent *agent;
    EXPECT(KVF_OK, start("l", NULL, NULL, &options, &agent));
    EXPECT(KVF_OK, kvf_close(agent, &error));
    CHECK(heard.lines > 0 && heard.stopping && heard.called == KVF_WRONG_THREAD);
}

/* One name, two agents: the later one lives. */
static void is_superseded(void) {
    kvf_agent *first = embed("one"), *second = NULL;
    kvf_stats stats = {.size = sizeof stats};
    double began = now();
    do {
        CHECK(now() - began < 10);
        EXPECT(KVF_OK, kvf_stats_get(first, &stats, &error));
    } while (stats.coordinators_connected == 0);
    char socket[100];
    snprintf(socket, sizeof socket, "%s/two.sock", folder);
    EXPECT(KVF_OK, start("one", "socket", socket, NULL, &second));
    while (kvf_stats_get(first, &stats, &error) == KVF_OK) CHECK(now() - began < 20);
    CHECK(error.status == KVF_AGENT_LOST);
    EXPECT(KVF_FENCED, kvf_close(first, &error));
    CHECK(strstr(error.message, "one") != NULL);
    EXPECT(KVF_OK, kvf_close(second, &error));
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    url = argv[1], folder = argv[2];
    struct sigaction before[NSIG], after;
    for (int i = 1; i < NSIG; i++) sigaction(i, NULL, &before[i]);
    /* What is made once a process stays: the first agent makes it. */
    kvf_agent *agent = embed("first");
    EXPECT(KVF_OK, kvf_close(agent, &error));
    int threads_before = threads(), descriptors_before = descriptors();
    is_refused();
    from_a_file();
    carries();
    ends_regions_first();
    agent = embed("other");
    says(agent);
    EXPECT(KVF_OK, kvf_close(agent, &error));
    is_superseded();
    CHECK(threads() == threads_before);
    CHECK(descriptors() == descriptors_before);
    for (int i = 1; i < NSIG; i++) {
        if (sigaction(i, NULL, &after) == 0) CHECK(after.sa_handler == before[i].sa_handler);
    }
    return 0;
}
