// How a warp's loads and stores meet the memory: bank conflicts of shared memory, sectors of global memory, by kernel and source
// line. From the addresses that the race detector's hooks see, so in a race build alone.
//
// The lanes of a warp whose accesses are one request are found by where they stand in the code, how many warp collectives and
// barriers the lane has passed, and how often it has passed this place since. Limits:
//   - the host compiler's loads and stores are counted, not nvcc's: one that it keeps in a register, or makes of two, differs.
//     What is written as one uint4 is one access of 16 bytes (a uint2{a, b} stored in braces is two of 4);
//   - of 8 bytes half a warp is a wavefront at best, of 16 bytes a quarter, even where all lanes read the same word;
//   - lanes that come to a place a different number of times between two collectives may be matched wrongly;
//   - caches are not looked at: a sector is counted whenever a request touches it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cudaemu::accesses {

enum class Space { shared, global };

struct Row {
    std::string kernel, file, text;  // text: of the source line
    int line = 0;
    Space space = Space::shared;
    bool write = false;
    unsigned bytes = 0;  // of a lane
    uint64_t requests = 0;
    uint64_t wavefronts = 0, least_wavefronts = 0;  // shared: 32 banks of 4 bytes
    uint64_t sectors = 0, least_sectors = 0;        // global: 32 bytes each; least: that hold as many different bytes
};

bool available();  // in this build
void start();      // forgets what it has counted
void stop();
std::vector<Row> table();  // sorted by kernel, file, line

/// The sum over the rows of this space whose kernel's name holds `kernel` and whose source line holds `text`.
Row total(const std::string& kernel, const std::string& text, Space space);

std::string format(const std::vector<Row>& rows);

}  // namespace cudaemu::accesses
