// A LoRA adapter bound to one model: factors per linear layer, unmerged.
#pragma once

#include <string>
#include <vector>

#include "device/device.h"

namespace halfbyte {

/// Immutable once made; shared by every session that uses it.
class Adapter {
public:
    /// by_module: one for each of Model::modules(); rank 0: that layer is not adapted.
    Adapter(std::string name, std::vector<LoraFactors> by_module)
        : name_(std::move(name)), by_module_(std::move(by_module)) {}
    const std::string& name() const { return name_; }
    /// The factors for module index `module`; null if there are none.
    const LoraFactors* find(int module) const {
        if (module < 0 || size_t(module) >= by_module_.size()) return nullptr;
        const LoraFactors& factors = by_module_[size_t(module)];
        return factors.rank > 0 ? &factors : nullptr;
    }
    size_t bytes() const;

private:
    std::string name_;
    std::vector<LoraFactors> by_module_;
};

}  // namespace halfbyte
