#include "places.h"

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <map>

namespace cudaemu {

namespace {

bool of_kernels(const std::string& file) {
    return file.find("/emulator/cudaemu") == std::string::npos && file.rfind("/usr/", 0) != 0 && file != "??";
}

void ask(const std::string& object, uintptr_t base, const std::vector<const void*>& code, const std::vector<size_t>& which,
         std::vector<Place>& out) {
    std::string command = "addr2line -a -i -f -C -e '" + object + "'";
    char text[2048];
    for (size_t i : which) {
        std::snprintf(text, sizeof text, " 0x%lx", static_cast<unsigned long>(uintptr_t(code[i]) - base));
        command += text;
    }
    std::FILE* pipe = popen((command + " 2>/dev/null").c_str(), "r");
    size_t at = size_t(-1);
    bool found = false;
    std::string function;
    for (bool expect_file = false; pipe && std::fgets(text, sizeof text, pipe);) {
        std::string line = text;
        while (!line.empty() && line.back() == '\n') line.pop_back();
        if (!expect_file && line.rfind("0x", 0) == 0) {
            ++at;
            found = false;
        } else if (!expect_file) {
            function = line;
            expect_file = true;
        } else {
            expect_file = false;
            if (at >= which.size() || found) continue;
            line = line.substr(0, line.find(" (disc"));
            const size_t colon = line.rfind(':');
            Place& place = out[which[at]];
            if (place.line == 0 || of_kernels(line.substr(0, colon))) {
                place = {function, line.substr(0, colon), std::atoi(line.c_str() + colon + 1)};
                found = of_kernels(place.file);
            }
        }
    }
    if (pipe) pclose(pipe);
}

}  // namespace

std::vector<Place> find_places(const std::vector<const void*>& code) {
    std::vector<Place> out(code.size());
    std::map<std::string, std::vector<size_t>> by_object;
    std::map<std::string, uintptr_t> bases;
    for (size_t i = 0; i < code.size(); ++i) {
        Dl_info info{};
        if (!dladdr(code[i], &info) || !info.dli_fname) continue;
        const std::string object = info.dli_fname;
        by_object[object].push_back(i);
        // Addresses in an executable that is not position-independent are those of the file.
        bases[object] =
            reinterpret_cast<uintptr_t>(info.dli_fbase) == 0x400000 ? 0 : reinterpret_cast<uintptr_t>(info.dli_fbase);
    }
    constexpr size_t kAtOnce = 500;
    for (const auto& [object, all] : by_object)
        for (size_t first = 0; first < all.size(); first += kAtOnce)
            ask(object, bases[object], code,
                {all.begin() + long(first), all.begin() + long(std::min(all.size(), first + kAtOnce))}, out);
    return out;
}

std::string source_line(const std::string& file, int line) {
    static std::map<std::string, std::vector<std::string>> files;
    auto [found, fresh] = files.try_emplace(file);
    if (fresh) {
        std::ifstream in(file);
        for (std::string text; std::getline(in, text);) found->second.push_back(text);
    }
    if (line < 1 || size_t(line) > found->second.size()) return "";
    const std::string& text = found->second[size_t(line) - 1];
    const size_t first = text.find_first_not_of(" \t");
    return first == std::string::npos ? "" : text.substr(first);
}

}  // namespace cudaemu
