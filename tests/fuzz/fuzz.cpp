#include "fuzz.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "core/utf8.h"
#include "models/loader.h"
#include "nn/context.h"
#include "storage/storage.h"

namespace fuzz {

using namespace halfbyte;

void require(bool good) {
    if (!good) std::abort();
}

void check_error(const Error& error) {
    const bool named = error.code() != ErrorCode::internal && error.code() != ErrorCode::out_of_memory;
    const bool readable = error.message().size() > 8 && first_invalid_utf8(error.message()) == std::string_view::npos;
    if (named && readable) return;
    std::fprintf(stderr, "an error that no user should see, code %d: %s\n", int(error.code()), error.what());
    std::abort();
}

std::string_view text_of(Bytes bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

std::string_view take_text(Bytes& bytes) {
    const std::string_view text = text_of(bytes).substr(0, text_of(bytes).find('\0'));
    bytes = bytes.subspan(std::min(bytes.size(), text.size() + 1));
    return text;
}

std::shared_ptr<const MappedFile> file_of(Bytes bytes) { return MappedFile::borrow("input", bytes); }

void read_weight(const Weight& weight) {
    require(weight.rows >= 0 && weight.cols >= 0);
    weight.storage->validate(weight, "read_weight");
    // No format of those that are read has fewer than one bit a value.
    require(uint64_t(weight.size()) <= 8 * uint64_t(weight.bytes()) + 8);
    std::vector<float> values(size_t(weight.size()));
    decode(weight, values.data());
    if (weight.size() == 0) return;
    for (int64_t row = 0; row < weight.rows; row++) weight.storage->check_scales(weight, row, "read_weight");
}

void read_all(const Checkpoint& checkpoint) {
    require(!checkpoint.metadata_json().empty());
    for (const std::string& name : checkpoint.names()) {
        require(checkpoint.contains(name));
        (void)checkpoint.shape(name);
        run([&] { read_weight(checkpoint.weight(name)); });
    }
}

Device& device() {
    static const std::shared_ptr<Device> cpu = make_device("cpu", {.threads = 1});
    return *cpu;
}

void run_model(const Checkpoint& checkpoint) {
    const std::unique_ptr<Model> model = load_model(checkpoint, device(), {});
    const ModelInfo& info = model->info();
    const int64_t count = std::min<int64_t>(3, info.max_positions);
    std::vector<int32_t> tokens, positions;
    for (int64_t i = 0; i < count; i++) tokens.push_back(int32_t(i % info.vocab_size)), positions.push_back(int32_t(i));
    const std::vector<Sequence> sequences = {{.first_row = 0, .rows = count, .first_key = 0, .keys = count}};
    const Batch batch{.tokens = tokens,
                      .positions = positions,
                      .token_types = {},
                      .sequences = sequences,
                      .adapters = {},
                      .adapter_rows = {}};
    Workspace workspace(device());
    std::unique_ptr<KvCache> cache;
    if (info.causal) {
        const KvFormat format{device().cache_dtype(), info.layers, info.kv_heads, info.head_dim};
        cache = std::make_unique<KvCache>(device(), format, 1, count);
    }
    const Context context{device(), workspace, batch, cache.get()};
    const Tensor hidden = model->forward(context);
    require(hidden.rows == count && hidden.cols == info.hidden_size);
    if (info.has_logits) require(model->logits(context, hidden).cols == info.vocab_size);
}

}  // namespace fuzz
