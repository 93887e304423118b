#include "cuda/plugin_loader.h"

#include <dlfcn.h>

#include <cstdlib>

#include "core/error.h"

namespace halfbyte::cuda {

namespace {

constexpr char kName[] = "libhalfbyte_cuda.so";

/// The folder of the library or program that this function is in.
std::string own_folder() {
    Dl_info info;
    if (dladdr(reinterpret_cast<const void*>(&find_plugin), &info) == 0 || info.dli_fname == nullptr) return {};
    const std::string path = info.dli_fname;
    const size_t slash = path.rfind('/');
    return slash == std::string::npos ? std::string() : path.substr(0, slash + 1);
}

struct Found {
    const Plugin* plugin = nullptr;
    std::string reason;
};

Found open_plugin() {
    const char* named = std::getenv("HALFBYTE_CUDA_LIBRARY");
    const std::string path = named != nullptr && *named != '\0' ? named : own_folder() + kName;
    // Never closed: CUDA's runtime keeps threads and handlers of its own. Its symbols stay apart from everybody else's.
    void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        const char* why = dlerror();
        const std::string text = why == nullptr ? "" : why;
        if (named == nullptr && text.find("No such file") != std::string::npos)
            return {nullptr,
                    "this build of halfbyte has no CUDA plugin (build it where nvcc is on PATH, with HALFBYTE_CUDA=ON)"};
        return {nullptr, concat("the CUDA plugin does not load: ", text)};
    }
    const auto entry = reinterpret_cast<decltype(&halfbyte_cuda_plugin)>(dlsym(library, "halfbyte_cuda_plugin"));
    if (entry == nullptr)
        return {nullptr, concat(path, " is not a CUDA plugin of halfbyte: it has no halfbyte_cuda_plugin")};
    const Plugin* const plugin = entry(kAbi);
    if (plugin == nullptr || plugin->abi != kAbi || plugin->bytes != sizeof(Plugin))
        return {nullptr, concat(path, " is of another version of halfbyte; build both from the same sources")};
    return {plugin, {}};
}

const Found& found() {
    static const Found result = open_plugin();
    return result;
}

}  // namespace

const Plugin* find_plugin(std::string& reason) {
    reason = found().reason;
    return found().plugin;
}

const Plugin& plugin() {
    if (found().plugin == nullptr) fail(ErrorCode::not_found, "device \"cuda\": ", found().reason, "; use device=\"cpu\"");
    return *found().plugin;
}

void check(const Plugin& plugin, Status status, const char* what) {
    if (status == 0) return;
    fail(status == kOutOfMemory ? ErrorCode::out_of_memory : ErrorCode::internal, "cuda: ", what, ": ", plugin.last_error());
}

}  // namespace halfbyte::cuda
