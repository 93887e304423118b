// Runs a target over files instead of new inputs, without libFuzzer: what once was a bug stays mended.
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include "fuzz.h"

namespace fs = std::filesystem;

namespace {

void replay(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    std::printf("%s\n", path.filename().c_str());
    std::fflush(stdout);  // the last line names the culprit
    const std::vector<uint8_t> copy(bytes.begin(), bytes.end());
    (void)LLVMFuzzerTestOneInput(copy.data(), copy.size());
}

}  // namespace

int main(int argc, char** argv) {
    size_t files = 0;
    try {
        for (int i = 1; i < argc; i++)
            for (const auto& entry : fs::recursive_directory_iterator(argv[i]))
                if (entry.is_regular_file()) replay(entry.path()), files++;
    } catch (const std::exception& error) {
        return std::fprintf(stderr, "replay: %s\n", error.what()), 1;
    }
    if (files == 0) return std::fprintf(stderr, "usage: %s FOLDER ...\n", argv[0]), 2;
    return 0;
}
