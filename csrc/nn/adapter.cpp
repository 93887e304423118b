#include "nn/adapter.h"

namespace halfbyte {

namespace {

size_t bytes_of(const Linear* layer) { return layer == nullptr ? 0 : layer->weight.bytes() + layer->bias.bytes; }
size_t bytes_of(const Embedding* table) { return table == nullptr ? 0 : table->table.bytes(); }
size_t bytes_of(const Norm* norm) { return norm == nullptr ? 0 : norm->gamma.bytes + norm->beta.bytes; }

}  // namespace

bool ModuleAdapter::is_sum() const {
    return linear.gain.data == nullptr && input_gain.data == nullptr && !replaced && !norm && !table && row_of.empty() &&
           columns.empty();
}

const ModuleAdapter* Adapter::find(int module, int64_t pass) const {
    const auto found = modules_.find({pass, module});
    return found == modules_.end() ? nullptr : &found->second;
}

bool Adapter::is_sum() const {
    for (const auto& [place, module] : modules_)
        if (!module.is_sum()) return false;
    return layers_.empty() && !prompt_ && prefix_.tokens == 0 && invocation_tokens_.empty();
}

size_t Adapter::bytes() const {
    size_t total = bytes_of(prompt_.get());
    for (const auto& [keys, values] : prefix_.layers) total += keys.bytes + values.bytes;
    for (const auto& [place, m] : modules_) {
        total += m.linear.lora.a.bytes + m.linear.lora.b.bytes + m.linear.gain.bytes + m.linear.shift.bytes +
                 m.input_gain.bytes + bytes_of(m.replaced.get()) + bytes_of(m.norm.get()) + bytes_of(m.table.get()) +
                 bytes_of(m.lookup.get()) + bytes_of(m.rows.get()) + bytes_of(m.row_outputs.get());
    }
    return total;
}

}  // namespace halfbyte
