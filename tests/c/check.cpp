#include "check.h"

#include <atomic>
#include <cstdio>
#include <utility>
#include <vector>

namespace check {

namespace {

std::vector<std::pair<const char*, void (*)()>>& tests() {
    static std::vector<std::pair<const char*, void (*)()>> list;
    return list;
}
std::atomic<int> failures{0};
std::string model_folder;

}  // namespace

Test::Test(const char* name, void (*body)()) { tests().emplace_back(name, body); }

void that(bool good, const char* what, const char* file, int line) {
    if (good) return;
    failures++;
    std::fprintf(stderr, "%s:%d: %s\n", file, line, what);
}

const std::string& folder() { return model_folder; }

}  // namespace check

int main(int argc, char** argv) {
    if (argc > 1) check::model_folder = argv[1];
    for (const auto& [name, body] : check::tests()) {
        std::printf("%s\n", name);
        std::fflush(stdout);
        const std::string error = check::error_of(body);
        if (!error.empty()) check::that(false, error.c_str(), name, 0);
    }
    std::printf("%zu tests, %d failed checks\n", check::tests().size(), check::failures.load());
    return check::failures == 0 && !check::tests().empty() ? 0 : 1;
}
