// Which instruction set runs.
#include "device/isa.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "core/error.h"
#include "cpu/kernels.h"

namespace halfbyte {

namespace cpu {
namespace {

std::vector<const Isa*> runnable_isas() {
    std::vector<const Isa*> list;
    for (const Isa& isa : built_isas())
        if (isa.supported()) list.push_back(&isa);
    std::sort(list.begin(), list.end(), [](const Isa* a, const Isa* b) { return a->rank > b->rank; });
    return list;
}

}  // namespace

const Isa& choose_isa() {
    const std::vector<const Isa*> list = runnable_isas();
    const char* forced = std::getenv("HALFBYTE_ISA");
    if (forced == nullptr || *forced == '\0') return *list.front();  // scalar runs everywhere
    for (const Isa* isa : list)
        if (std::string_view(isa->name) == forced) return *isa;
    std::string built, runnable;
    for (const Isa& isa : built_isas()) built += concat(built.empty() ? "" : ", ", isa.name);
    for (const Isa* isa : list) runnable += concat(runnable.empty() ? "" : ", ", isa->name);
    fail(ErrorCode::invalid_argument, "environment variable HALFBYTE_ISA: \"", forced,
         "\" cannot run here; this machine can run: ", runnable, " (built: ", built, ")");
}

}  // namespace cpu

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const cpu::Isa* isa : cpu::runnable_isas())
        if (isa->rank >= 0) names.emplace_back(isa->name);
    return names;
}

std::string instruction_set() { return cpu::choose_isa().name; }

}  // namespace halfbyte
