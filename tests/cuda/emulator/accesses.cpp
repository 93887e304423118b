#include "accesses.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <tuple>
#include <unordered_map>

#include "internal.h"
#include "places.h"

namespace cudaemu {

namespace {

using accesses::Row;
using accesses::Space;

bool recording = false;

// A place in the code: the address of an access, or one named by hand.
struct Spot {
    const void* code;
    Site site;
    bool operator==(const Spot& o) const { return code == o.code && site.file == o.site.file && site.line == o.site.line; }
    bool operator<(const Spot& o) const {
        return std::tie(code, site.file, site.line) < std::tie(o.code, o.site.file, o.site.line);
    }
};

struct Key {
    Spot spot;
    uint64_t syncs;
    uint32_t warp, time;  // time: how often the lane has been there since its last sync
    bool operator==(const Key&) const = default;
};
struct Hash {
    size_t operator()(const Key& k) const {
        size_t h =
            reinterpret_cast<size_t>(k.spot.code) ^ reinterpret_cast<size_t>(k.spot.site.file) ^ size_t(k.spot.site.line);
        for (size_t v : {size_t(k.syncs), size_t(k.warp), size_t(k.time)}) h = (h ^ v) * 0x9e3779b97f4a7c15u;
        return h ^ h >> 29;
    }
};
struct Request {
    uint32_t lanes = 0;
    bool shared, write;
    uint16_t bytes;
    std::array<uint64_t, 32> address;
};

struct Kind {
    const void* kernel;
    Spot spot;
    bool shared, write;
    unsigned bytes;
    bool operator<(const Kind& o) const {
        return std::tie(kernel, spot, shared, write, bytes) < std::tie(o.kernel, o.spot, o.shared, o.write, o.bytes);
    }
};

struct Lane {
    uint64_t block = 0, syncs = 0;
    std::vector<std::pair<Spot, uint32_t>> times;
};

std::unordered_map<Key, Request, Hash> requests;  // of the running block
std::map<Kind, Row> counts;
std::array<Lane, 1024> lanes;
uint64_t running_block = 0;
const void* running_kernel = nullptr;

void count_wavefronts(const Request& r, Row& row) {
    const unsigned lanes_at_once = r.bytes <= 4 ? 32 : r.bytes <= 8 ? 16 : 8;
    for (unsigned first = 0; first < 32; first += lanes_at_once) {
        std::vector<uint64_t> words;
        for (unsigned l = first; l < first + lanes_at_once; ++l)
            for (unsigned b = 0; (r.lanes >> l & 1) && b < r.bytes; b += 4) words.push_back((r.address[l] + b) / 4);
        std::sort(words.begin(), words.end());
        words.erase(std::unique(words.begin(), words.end()), words.end());
        unsigned of_bank[32] = {}, most = 0;
        for (uint64_t w : words) most = std::max(most, ++of_bank[w % 32]);
        row.wavefronts += most;
        row.least_wavefronts += most != 0;
    }
}

void count_sectors(const Request& r, Row& row) {
    std::array<uint64_t, 32> starts;
    unsigned n = 0;
    for (unsigned l = 0; l < 32; ++l)
        if (r.lanes >> l & 1) starts[n++] = r.address[l];
    std::sort(starts.begin(), starts.begin() + n);
    uint64_t different = 0, sectors = 0, end = 0, last_sector = ~uint64_t(0);
    for (unsigned i = 0; i < n; ++i) {
        const uint64_t stop = starts[i] + r.bytes;
        different += stop > end ? stop - std::max(end, starts[i]) : 0;
        end = std::max(end, stop);
        for (uint64_t s = starts[i] / 32; s <= (stop - 1) / 32; ++s)
            if (last_sector == ~uint64_t(0) || s > last_sector) {
                ++sectors;
                last_sector = s;
            }
    }
    row.sectors += sectors;
    row.least_sectors += (different + 31) / 32;
}

void finish(const Spot& spot, const Request& r) {
    Row& row = counts[{running_kernel, spot, r.shared, r.write, r.bytes}];
    ++row.requests;
    if (r.shared)
        count_wavefronts(r, row);
    else
        count_sectors(r, row);
}

void finish_block() {
    for (const auto& [key, request] : requests) finish(key.spot, request);
    requests.clear();
}

void count(const void* pointer, size_t bytes, bool write, const Spot& spot) {
    const size_t offset = static_cast<const char*>(pointer) - heap;
    if (!recording || !self || offset >= kHeapBytes || bytes > 32) return;
    if (running_block != block->serial) {
        finish_block();
        running_block = block->serial;
        running_kernel = block->launch->kernel;
    }
    Lane& lane = lanes[self->linear];
    const uint64_t syncs = uint64_t(self->full_syncs) << 32 | self->partial_syncs;
    if (lane.block != block->serial || lane.syncs != syncs) {
        lane.block = block->serial;
        lane.syncs = syncs;
        lane.times.clear();
    }
    auto time = std::find_if(lane.times.begin(), lane.times.end(), [&](const auto& t) { return t.first == spot; });
    if (time == lane.times.end()) time = lane.times.insert(time, {spot, 0});
    const Key key{spot, syncs, self->linear / 32, time->second++};
    const auto [found, fresh] = requests.try_emplace(key);
    Request& r = found->second;
    if (fresh) {
        r.shared = offset < kSharedBytes;
        r.write = write;
        r.bytes = uint16_t(bytes);
    }
    r.lanes |= 1u << self->linear % 32;
    r.address[self->linear % 32] = offset;
    if (r.lanes == ~0u) {
        finish(spot, r);
        requests.erase(found);
    }
}

std::string kernel_name(std::string name) {  // "void ns::(anonymous namespace)::k<3>(float*)" -> "ns::k<3>"
    for (const std::string& noise : {std::string("(anonymous namespace)::"), std::string("halfbyte::cuda::")})
        for (size_t at; (at = name.find(noise)) != std::string::npos;) name.erase(at, noise.size());
    name = name.substr(0, name.find('('));
    return name.rfind("void ", 0) == 0 ? name.substr(5) : name;
}

}  // namespace

void count_access(const void* pointer, size_t bytes, bool write, Site site) {
    count(pointer, bytes, write, {nullptr, site});
}
void count_access_of_code(const void* pointer, size_t bytes, bool write, const void* code) {
    if (recording) count(pointer, bytes, write, {code, {nullptr, 0}});
}

namespace accesses {

bool available() { return true; }

void start() {
    counts.clear();
    requests.clear();
    recording = true;
}
void stop() { recording = false; }

std::vector<Row> table() {
    finish_block();
    std::vector<const void*> code;
    for (const auto& [kind, row] : counts) {
        code.push_back(kind.kernel);
        code.push_back(kind.spot.code ? static_cast<const char*>(kind.spot.code) - 1 : kind.kernel);
    }
    const std::vector<Place> places = find_places(code);
    std::map<std::tuple<std::string, std::string, int, bool, bool, unsigned>, Row> merged;
    size_t i = 0;
    for (const auto& [kind, row] : counts) {
        const std::string kernel = kernel_name(places[i].function);
        const std::string file = kind.spot.code ? places[i + 1].file : kind.spot.site.file;
        const int line = kind.spot.code ? places[i + 1].line : kind.spot.site.line;
        i += 2;
        Row& sum = merged[{kernel, file, line, kind.shared, kind.write, kind.bytes}];
        if (sum.requests == 0) {
            sum.kernel = kernel;
            sum.file = file;
            sum.line = line;
            sum.text = source_line(file, line);
            sum.space = kind.shared ? Space::shared : Space::global;
            sum.write = kind.write;
            sum.bytes = kind.bytes;
        }
        sum.requests += row.requests;
        sum.wavefronts += row.wavefronts;
        sum.least_wavefronts += row.least_wavefronts;
        sum.sectors += row.sectors;
        sum.least_sectors += row.least_sectors;
    }
    std::vector<Row> out;
    for (auto& [key, row] : merged) out.push_back(std::move(row));
    return out;
}

Row total(const std::string& kernel, const std::string& text, Space space) {
    Row sum;
    sum.space = space;
    for (const Row& row : table())
        if (row.space == space && row.kernel.find(kernel) != std::string::npos && row.text.find(text) != std::string::npos) {
            sum.requests += row.requests;
            sum.wavefronts += row.wavefronts;
            sum.least_wavefronts += row.least_wavefronts;
            sum.sectors += row.sectors;
            sum.least_sectors += row.least_sectors;
        }
    return sum;
}

std::string format(const std::vector<Row>& rows) {
    std::string out = "requests   cost       least      what              where\n", kernel;
    for (const Row& row : rows) {
        if (row.kernel != kernel) out += (kernel = row.kernel) + "\n";
        const bool shared = row.space == Space::shared;
        const uint64_t cost = shared ? row.wavefronts : row.sectors,
                       least = shared ? row.least_wavefronts : row.least_sectors;
        char text[400];
        std::snprintf(text, sizeof text, "%-10llu %-10llu %-10llu %-6s %-5s %2u B %s %s:%d: %.90s\n",
                      static_cast<unsigned long long>(row.requests), static_cast<unsigned long long>(cost),
                      static_cast<unsigned long long>(least), shared ? "shared" : "global", row.write ? "store" : "load",
                      row.bytes, cost > least ? "!" : " ", row.file.substr(row.file.rfind('/') + 1).c_str(), row.line,
                      row.text.c_str());
        out += text;
    }
    return out;
}

}  // namespace accesses
}  // namespace cudaemu
