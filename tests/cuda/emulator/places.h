// From code addresses to source lines, for the race detector and the table of accesses.
#pragma once

#include <string>
#include <vector>

namespace cudaemu {

struct Place {
    std::string function, file = "?";
    int line = 0;
};

// The innermost place of each address that lies in no header of the emulator or of the system. One run of addr2line.
std::vector<Place> find_places(const std::vector<const void*>& code);

std::string source_line(const std::string& file, int line);

}  // namespace cudaemu
