#include "models/model.h"

#include <algorithm>

#include "core/error.h"

namespace halfbyte {

bool matches_pattern(std::string_view pattern, std::string_view name) {
    if (pattern.starts_with('*')) return name.ends_with(pattern.substr(1));
    if (pattern.ends_with('*')) return name.starts_with(pattern.substr(0, pattern.size() - 1));
    return name == pattern;
}

bool Model::unused(std::string_view name) const {
    return std::any_of(unused_.begin(), unused_.end(),
                       [&](const std::string& pattern) { return matches_pattern(pattern, name); });
}

Tensor Model::logits(const Context& context, const Tensor& hidden) const {
    (void)context, (void)hidden;
    fail(ErrorCode::unsupported, "this ", info_.architecture,
         " checkpoint has no output layer over a vocabulary; it has hidden states");
}

Tensor Model::classify(const Context& context, const Tensor& hidden, bool per_token) const {
    if (per_token || !info_.has_pooler) return linear(context, head_, hidden);
    if (!pooler_.weight) {
        fail(ErrorCode::not_found, "this ", info_.architecture,
             " checkpoint has no pooler, which its classification head reads the first token through");
    }
    const Tensor pooled = linear(context, pooler_, hidden);
    return linear(context, head_, activated(Activation::tanh, pooled));
}

}  // namespace halfbyte
