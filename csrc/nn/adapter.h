// A LoRA adapter bound to one model: factors per linear layer, unmerged.
#pragma once

#include <string>
#include <vector>

#include "device/device.h"

namespace halfbyte {

/// Immutable once made; shared by every session that uses it.
class Adapter {
public:
    struct Factors {
        Buffer a, b;
        LoraFactors view;  ///< rank 0: this layer is not adapted
    };
    Adapter(std::string name, std::vector<Factors> by_module) : name_(std::move(name)), by_module_(std::move(by_module)) {}
    const std::string& name() const { return name_; }
    /// The factors for module index `module`; null if there are none.
    const LoraFactors* find(int module) const {
        if (module < 0 || size_t(module) >= by_module_.size()) return nullptr;
        const LoraFactors& view = by_module_[size_t(module)].view;
        return view.rank > 0 ? &view : nullptr;
    }
    size_t bytes() const;

private:
    std::string name_;
    std::vector<Factors> by_module_;
};

}  // namespace halfbyte
