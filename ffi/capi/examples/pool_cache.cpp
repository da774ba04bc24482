// Puts blocks into one agent's pool by value, pulls them into another's with a callback, and reads them
// there through the pool's mapping.
//
//   pool_cache SOCKET_A SOCKET_B
#include <kvferry.h>

#include <array>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

namespace {

constexpr std::uint32_t kBlocks = 32;
constexpr std::size_t kBlockBytes = 48 * 1024;
constexpr std::uint32_t kHash = 16;

/// A status that is not KVF_OK, as an exception.
struct Failed : std::runtime_error {
    explicit Failed(const kvf_error &error)
        : std::runtime_error(std::string(kvf_status_text(error.status)) + ": " + error.message),
          status(error.status) {}
    kvf_status status;
};

template <typename Function, typename... Arguments>
void call(Function function, Arguments... arguments) {
    kvf_error error;
    if (function(arguments..., &error) != KVF_OK) throw Failed(error);
}

/// A struct that begins with its size.
template <typename T> T sized() {
    T it{};
    it.size = sizeof it;
    return it;
}

struct Close {
    void operator()(kvf_agent *agent) const { kvf_close(agent, nullptr); }
    void operator()(kvf_pull *pull) const { kvf_pull_free(pull); }
};
using Agent = std::unique_ptr<kvf_agent, Close>;
using Pull = std::unique_ptr<kvf_pull, Close>;

Agent connect(const char *socket) {
    auto options = sized<kvf_options>();
    options.socket = socket;
    kvf_agent *agent = nullptr;
    call(kvf_open, &options, &agent);
    return Agent(agent);
}

std::uint8_t content(std::uint32_t block, std::size_t at) {
    return static_cast<std::uint8_t>(((block + 1) * 2654435761u ^ static_cast<std::uint32_t>(at) * 2246822519u) >> 11);
}

/// Tells a waiting thread when the pull has ended.
struct Signal {
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;
    static void on_news(kvf_pull *, std::int32_t done, void *user) {
        if (done == 0) return;
        auto *self = static_cast<Signal *>(user);
        std::lock_guard<std::mutex> lock(self->mutex);
        self->done = true;
        self->changed.notify_all();
    }
};

/// A pool's memory, for reading.
class Mapping {
  public:
    Mapping(kvf_agent *agent, std::uint32_t region) {
        kvf_region_map map;
        call(kvf_region_open, agent, region, 0, &map);
        bytes_ = map.data_bytes;
        memory_ = mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, map.data, 0);
        ::close(map.data);
        ::close(map.generations);
        if (memory_ == MAP_FAILED) throw std::runtime_error("mmap");
        call(kvf_region_describe, agent, region, &region_);
    }
    ~Mapping() { munmap(memory_, bytes_); }
    Mapping(const Mapping &) = delete;
    Mapping &operator=(const Mapping &) = delete;
    const std::uint8_t *slot(std::uint32_t slot) const {
        return static_cast<const std::uint8_t *>(memory_) + region_.first_plane.base +
               slot * region_.first_plane.stride;
    }

  private:
    void *memory_ = nullptr;
    std::size_t bytes_ = 0;
    kvf_region region_{};
};

void run(const char *socket_a, const char *socket_b) {
    const Agent a = connect(socket_a), b = connect(socket_b);
    auto space = sized<kvf_namespace>();
    space.name = "example-cpp";
    space.dtype = "u8";
    space.tokens_per_block = 16;
    space.plane_count = 1;
    space.plane_bytes = kBlockBytes;
    space.hash_len = kHash;
    space.checksum = KVF_CHECKSUM_ALWAYS;
    kvf_region pool_a, pool_b;
    call(kvf_register_pool, a.get(), &space, 2 * kBlocks * kBlockBytes, 0u, &pool_a);
    call(kvf_register_pool, b.get(), &space, 2 * kBlocks * kBlockBytes, 0u, &pool_b);

    std::vector<std::uint8_t> blocks(kBlocks * kBlockBytes), hashes(kBlocks * kHash);
    for (std::uint32_t block = 0; block < kBlocks; block++) {
        for (std::size_t at = 0; at < kBlockBytes; at++) blocks[block * kBlockBytes + at] = content(block, at);
        for (std::size_t at = 0; at < kHash; at++) hashes[block * kHash + at] = content(block + 7000, at);
    }
    const kvf_hashes wanted{hashes.data(), kHash, kBlocks};
    kvf_put_result put;
    call(kvf_put, a.get(), space.name, &wanted, static_cast<const std::uint8_t *>(blocks.data()), blocks.size(), 0u,
         static_cast<const std::uint8_t *>(nullptr), 0u, 10000u, &put);
    if (put.stored != kBlocks || put.announced == 0) throw std::runtime_error("not all blocks were stored and announced");

    std::array<kvf_place, kBlocks> places{};
    std::size_t answered = 0;
    call(kvf_lookup, b.get(), space.name, &wanted, 1, 0u, places.data(), &answered);
    std::printf("%zu of %u blocks could be had, the first %s\n", answered, kBlocks,
                places[0] == KVF_PLACE_REMOTE ? "from another node" : "here");

    Signal signal;
    auto request = sized<kvf_pull_request>();
    request.namespace_name = space.name;
    request.hashes = wanted;
    request.timeout_ms = 60000;
    request.callback = Signal::on_news;
    request.user = &signal;
    kvf_pull *started = nullptr;
    call(kvf_pull_start, b.get(), &request, &started);
    const Pull pull(started);
    {
        std::unique_lock<std::mutex> lock(signal.mutex);
        signal.changed.wait(lock, [&] { return signal.done; });
    }
    std::array<kvf_outcome, kBlocks> outcomes{};
    std::size_t given = 0;
    int done = 0;
    call(kvf_pull_poll, pull.get(), outcomes.data(), outcomes.size(), &given, &done);
    const Mapping memory(b.get(), pool_b.region);
    for (std::size_t i = 0; i < given; i++) {
        const kvf_outcome &it = outcomes[i];
        if (it.kind != KVF_OUTCOME_PULLED) throw std::runtime_error(it.detail);
        if (std::memcmp(memory.slot(it.slot), &blocks[it.index * kBlockBytes], kBlockBytes) != 0)
            throw std::runtime_error("block " + std::to_string(it.index) + " differs");
    }
    auto summary = sized<kvf_pull_summary>();
    call(kvf_pull_summary_of, pull.get(), &summary);
    call(kvf_release, b.get(), summary.pin);

    auto stats = sized<kvf_stats>();
    call(kvf_stats_get, b.get(), &stats);
    kvf_evicted evicted;
    call(kvf_evict, b.get(), space.name, static_cast<const kvf_hashes *>(nullptr), &evicted);
    std::printf("%zu blocks, every byte as put; %s pulled %llu; %llu evicted\n", given, stats.node,
                static_cast<unsigned long long>(stats.blocks_pulled), static_cast<unsigned long long>(evicted.evicted));
    if (given != kBlocks || done == 0 || evicted.evicted != kBlocks) throw std::runtime_error("not all of them");
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 3 || kvf_abi_version() != KVF_ABI_VERSION) {
        std::fprintf(stderr, "usage: %s SOCKET_A SOCKET_B\n", argv[0]);
        return 2;
    }
    try {
        run(argv[1], argv[2]);
        return 0;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
