// include/halfbyte/halfbyte.h over runtime/: converts arguments, calls, turns exceptions into a status and a text.
#include "halfbyte/halfbyte.h"

#include <limits>
#include <new>
#include <optional>
#include <stdexcept>
#include <utility>

#include "core/error.h"
#include "runtime/engine.h"

using namespace halfbyte;

struct hb_options {
    EngineOptions engine;
};

struct hb_model {
    std::shared_ptr<Engine> engine;
};

struct hb_generate_options {
    GenerateOptions generate;
    std::vector<std::pair<std::string, float>> adapters;  // name, weight
};

struct hb_generation {
    Generation generation;
};

namespace {

static_assert(HB_INVALID_ARGUMENT == int(ErrorCode::invalid_argument) && HB_NOT_FOUND == int(ErrorCode::not_found) &&
              HB_CORRUPT == int(ErrorCode::corrupt) && HB_UNSUPPORTED == int(ErrorCode::unsupported) &&
              HB_OUT_OF_MEMORY == int(ErrorCode::out_of_memory) && HB_IO == int(ErrorCode::io) &&
              HB_CANCELLED == int(ErrorCode::cancelled) && HB_INTERNAL == int(ErrorCode::internal));

thread_local std::string last_error;

int record(int status, const char* function, const char* text) noexcept {
    try {
        last_error = concat(function, ": ", text);
    } catch (...) {
        last_error.clear();  // no memory for the text; the status says enough
    }
    return status;
}

/// The one place where exceptions end.
template <class F>
int guarded(const char* function, F body) noexcept {
    try {
        body();
        return HB_OK;
    } catch (const Error& error) {
        return record(int(error.code()), function, error.what());
    } catch (const std::bad_alloc&) {
        return record(HB_OUT_OF_MEMORY, function, "out of memory");
    } catch (const std::length_error&) {
        return record(HB_OUT_OF_MEMORY, function, "out of memory: a size beyond what any container holds");
    } catch (const std::exception& error) {
        return record(HB_INTERNAL, function, error.what());
    } catch (...) {
        return record(HB_INTERNAL, function, "an exception of unknown type");
    }
}

/// The object behind a pointer that must not be null.
template <class T>
T& at(T* pointer, const char* name) {
    if (pointer == nullptr) fail(ErrorCode::invalid_argument, name, " is a null pointer");
    return *pointer;
}

/// *out = make(), which is not called where there is no place for what it makes.
template <class T, class F>
void place(T** out, const char* name, F make) {
    T*& to = at(out, name);
    to = make();
}

template <class T>
std::span<const T> array(const T* data, size_t size, const char* name) {
    if (size > 0) at(data, name);
    return {data, size};
}

int64_t signed_size(size_t size, const char* name) {
    if (size > size_t(std::numeric_limits<int64_t>::max()))
        fail(ErrorCode::invalid_argument, name, " is far too large: ", size);
    return int64_t(size);
}

template <class F>
int set(const char* function, hb_options* options, F change) noexcept {
    return guarded(function, [&] { change(at(options, "options").engine); });
}

template <class F>
int set(const char* function, hb_generate_options* options, F change) noexcept {
    return guarded(function, [&] { change(at(options, "options").generate); });
}

/// *out = read(engine), for the getters.
template <class T, class F>
int get(const char* function, const hb_model* model, T* out, F read) noexcept {
    return guarded(function, [&] {
        const Engine& engine = *at(model, "model").engine;
        at(out, "the pointer to the result") = T(read(engine));
    });
}

/// The arguments that whole-sequence calls share, converted and checked.
struct Call {
    const Engine& engine;
    std::vector<int64_t> lengths;
    AdapterMix adapter;
    TokenBatch batch;

    Call(const hb_model* model, const int32_t* tokens, const int32_t* token_types, const size_t* sizes, size_t sequences,
         const char* adapter_name)
        : engine(*at(model, "model").engine) {
        size_t total = 0;
        for (const size_t length : array(sizes, sequences, "lengths")) {
            lengths.push_back(signed_size(length, "a length"));
            if (length > size_t(std::numeric_limits<int64_t>::max()) / sizeof(float) - total)
                fail(ErrorCode::invalid_argument, "the sum of the lengths is far too large");
            total += length;
        }
        batch = {.tokens = array(tokens, total, "tokens"),
                 .lengths = lengths,
                 .positions = {},
                 .token_types = token_types == nullptr ? std::span<const int32_t>() : std::span(token_types, total)};
        if (adapter_name == nullptr) return;
        adapter = AdapterMix(engine.adapters().get(adapter_name));
        batch.adapters = {&adapter, 1};
    }
    Call(const Call&) = delete;

    float* out(float* data, size_t size, size_t rows, int64_t cols) const {
        if (rows > 0 && size_t(cols) > std::numeric_limits<size_t>::max() / rows)
            fail(ErrorCode::invalid_argument, "the result is far too large");
        if (size != rows * size_t(cols))
            fail(ErrorCode::invalid_argument, "out_size: expected ", rows, " * ", cols, " = ", rows * size_t(cols),
                 " floats, found ", size);
        if (size > 0) at(data, "out");
        return data;
    }
};

Generation start(const hb_model* model, const int32_t* prompt, size_t size, const hb_generate_options* options) {
    const std::shared_ptr<Engine>& engine = at(model, "model").engine;
    const std::span<const int32_t> tokens = array(prompt, size, "prompt");
    GenerateOptions copy;
    if (options != nullptr) {
        copy = options->generate;
        std::vector<AdapterMix::Part> parts;
        for (const auto& [name, weight] : options->adapters) parts.push_back({engine->adapters().get(name), weight});
        copy.adapter = AdapterMix(std::move(parts));
    }
    return Generation(engine, tokens, std::move(copy));
}

}  // namespace

#define HB_TEXT_OF(x) #x
#define HB_TEXT(x) HB_TEXT_OF(x)
const char* hb_version() noexcept {
    return HB_TEXT(HB_VERSION_MAJOR) "." HB_TEXT(HB_VERSION_MINOR) "." HB_TEXT(HB_VERSION_PATCH);
}

const char* hb_last_error() noexcept { return last_error.c_str(); }

const char* hb_status_name(int status) noexcept {
    switch (status) {
        case HB_OK: return "HB_OK";
        case HB_INVALID_ARGUMENT: return "HB_INVALID_ARGUMENT";
        case HB_NOT_FOUND: return "HB_NOT_FOUND";
        case HB_CORRUPT: return "HB_CORRUPT";
        case HB_UNSUPPORTED: return "HB_UNSUPPORTED";
        case HB_OUT_OF_MEMORY: return "HB_OUT_OF_MEMORY";
        case HB_IO: return "HB_IO";
        case HB_CANCELLED: return "HB_CANCELLED";
        case HB_INTERNAL: return "HB_INTERNAL";
        default: return "unknown";
    }
}

// --- opening a model ----------------------------------------------------------------------------------------------

int hb_options_create(hb_options** options) noexcept {
    return guarded("hb_options_create", [&] { place(options, "options", [] { return new hb_options; }); });
}

void hb_options_free(hb_options* options) noexcept { delete options; }

int hb_options_set_device(hb_options* options, const char* device) noexcept {
    return set("hb_options_set_device", options, [&](EngineOptions& o) { o.device = &at(device, "device"); });
}

int hb_options_set_device_memory(hb_options* options, uint64_t bytes) noexcept {
    return set("hb_options_set_device_memory", options, [&](EngineOptions& o) { o.device_memory = size_t(bytes); });
}

int hb_options_set_threads(hb_options* options, int threads) noexcept {
    return set("hb_options_set_threads", options, [&](EngineOptions& o) { o.threads = threads; });
}

int hb_options_set_precision(hb_options* options, const char* precision) noexcept {
    return set("hb_options_set_precision", options,
               [&](EngineOptions& o) { o.precision = parse_precision(&at(precision, "precision")); });
}

int hb_options_set_quantize(hb_options* options, const char* format) noexcept {
    return set("hb_options_set_quantize", options, [&](EngineOptions& o) { o.quantize = &at(format, "format"); });
}

int hb_options_set_kv_cache(hb_options* options, const char* dtype) noexcept {
    return set("hb_options_set_kv_cache", options, [&](EngineOptions& o) {
        const std::string_view name = &at(dtype, "dtype");
        o.kv_cache = name.empty() ? std::optional<DType>() : parse_kv_cache(name);
    });
}

int hb_options_set_progress(hb_options* options, hb_progress_callback callback, void* user) noexcept {
    return set("hb_options_set_progress", options, [&](EngineOptions& o) {
        if (callback == nullptr) {
            o.progress = nullptr;
            return;
        }
        o.progress = [callback, user](double done) {
            if (callback(done, user) != 0) fail(ErrorCode::cancelled, "the progress callback asked to stop");
        };
    });
}

int hb_model_open(const char* path, const hb_options* options, hb_model** model) noexcept {
    return guarded("hb_model_open", [&] {
        at(model, "model");
        at(path, "path");
        *model = new hb_model{Engine::load(path, options == nullptr ? EngineOptions() : options->engine)};
    });
}

void hb_model_close(hb_model* model) noexcept { delete model; }

int hb_model_architecture(const hb_model* model, const char** name) noexcept {
    return get("hb_model_architecture", model, name, [](const Engine& e) { return e.info().architecture.c_str(); });
}

int hb_model_format(const hb_model* model, const char** name) noexcept {
    return get("hb_model_format", model, name, [](const Engine& e) { return e.format().c_str(); });
}

int hb_model_vocab_size(const hb_model* model, size_t* size) noexcept {
    return get("hb_model_vocab_size", model, size, [](const Engine& e) { return e.info().vocab_size; });
}

int hb_model_hidden_size(const hb_model* model, size_t* size) noexcept {
    return get("hb_model_hidden_size", model, size, [](const Engine& e) { return e.info().hidden_size; });
}

int hb_model_layers(const hb_model* model, size_t* layers) noexcept {
    return get("hb_model_layers", model, layers, [](const Engine& e) { return e.info().layers; });
}

int hb_model_max_positions(const hb_model* model, size_t* positions) noexcept {
    return get("hb_model_max_positions", model, positions, [](const Engine& e) { return e.info().max_positions; });
}

int hb_model_is_causal(const hb_model* model, int* causal) noexcept {
    return get("hb_model_is_causal", model, causal, [](const Engine& e) { return e.info().causal; });
}

int hb_model_has_logits(const hb_model* model, int* has_logits) noexcept {
    return get("hb_model_has_logits", model, has_logits, [](const Engine& e) { return e.info().has_logits; });
}

int hb_model_set_vocabulary(hb_model* model, const char* const* pieces, const size_t* lengths, size_t count) noexcept {
    return guarded("hb_model_set_vocabulary", [&] {
        Engine& engine = *at(model, "model").engine;
        const std::span<const char* const> texts = array(pieces, count, "pieces");
        const std::span<const size_t> sizes = array(lengths, count, "lengths");
        std::vector<std::string> vocabulary;
        for (size_t i = 0; i < count; i++) {
            if (texts[i] == nullptr && sizes[i] > 0) fail(ErrorCode::invalid_argument, "pieces[", i, "] is a null pointer");
            vocabulary.emplace_back(sizes[i] > 0 ? std::string(texts[i], sizes[i]) : std::string());
        }
        engine.set_vocabulary(std::move(vocabulary));
    });
}

// --- adapters -----------------------------------------------------------------------------------------------------

int hb_model_attach_adapter(hb_model* model, const char* folder, const char* name) noexcept {
    return guarded("hb_model_attach_adapter", [&] {
        at(model, "model").engine->adapters().add(&at(folder, "folder"), &at(name, "name"), false, false);
    });
}

int hb_model_register_adapter(hb_model* model, const char* folder, const char* name, int pinned) noexcept {
    return guarded("hb_model_register_adapter", [&] {
        at(model, "model").engine->adapters().add(&at(folder, "folder"), &at(name, "name"), pinned != 0, true);
    });
}

int hb_model_set_adapter_budget(hb_model* model, uint64_t bytes) noexcept {
    return guarded("hb_model_set_adapter_budget", [&] { at(model, "model").engine->adapters().set_budget(bytes); });
}

int hb_model_adapter_stats(const hb_model* model, uint64_t* hits, uint64_t* misses, uint64_t* bytes) noexcept {
    return guarded("hb_model_adapter_stats", [&] {
        const AdapterRegistry::Stats stats = at(model, "model").engine->adapters().stats();
        if (hits != nullptr) *hits = stats.hits;
        if (misses != nullptr) *misses = stats.misses;
        if (bytes != nullptr) *bytes = stats.bytes;
    });
}

int hb_model_detach_adapter(hb_model* model, const char* name) noexcept {
    return guarded("hb_model_detach_adapter", [&] { at(model, "model").engine->adapters().remove(&at(name, "name")); });
}

// --- whole sequences ----------------------------------------------------------------------------------------------

int hb_logits_size(const hb_model* model, const char* adapter, size_t* size) noexcept {
    return guarded("hb_logits_size", [&] {
        const Call call(model, nullptr, nullptr, nullptr, 0, adapter);
        at(size, "the pointer to the result") = size_t(call.engine.logits_size(call.batch));
    });
}

int hb_logits(const hb_model* model, const int32_t* tokens, const size_t* lengths, size_t sequences, const char* adapter,
              float* out, size_t out_size) noexcept {
    return guarded("hb_logits", [&] {
        const Call call(model, tokens, nullptr, lengths, sequences, adapter);
        call.engine.logits(call.batch,
                           call.out(out, out_size, call.batch.tokens.size(), call.engine.logits_size(call.batch)));
    });
}

int hb_hidden_states(const hb_model* model, const int32_t* tokens, const int32_t* token_types, const size_t* lengths,
                     size_t sequences, const char* adapter, float* out, size_t out_size) noexcept {
    return guarded("hb_hidden_states", [&] {
        const Call call(model, tokens, token_types, lengths, sequences, adapter);
        call.engine.hidden_states(call.batch,
                                  call.out(out, out_size, call.batch.tokens.size(), call.engine.info().hidden_size));
    });
}

int hb_embed(const hb_model* model, const int32_t* tokens, const int32_t* token_types, const size_t* lengths,
             size_t sequences, const char* pooling, int normalize, const char* adapter, float* out,
             size_t out_size) noexcept {
    return guarded("hb_embed", [&] {
        const Call call(model, tokens, token_types, lengths, sequences, adapter);
        call.engine.embed(call.batch, parse_pooling(&at(pooling, "pooling")), normalize != 0,
                          call.out(out, out_size, sequences, call.engine.info().hidden_size));
    });
}

int hb_labels(const hb_model* model, const char* adapter, size_t* labels) noexcept {
    return guarded("hb_labels", [&] {
        const Call call(model, nullptr, nullptr, nullptr, 0, adapter);
        at(labels, "the pointer to the result") = size_t(call.engine.labels(call.batch));
    });
}

int hb_classify(const hb_model* model, const int32_t* tokens, const int32_t* token_types, const size_t* lengths,
                size_t sequences, int per_token, const char* adapter, float* out, size_t out_size) noexcept {
    return guarded("hb_classify", [&] {
        const Call call(model, tokens, token_types, lengths, sequences, adapter);
        const size_t rows = per_token != 0 ? call.batch.tokens.size() : sequences;
        call.engine.classify(call.batch, per_token != 0, call.out(out, out_size, rows, call.engine.labels(call.batch)));
    });
}

// --- generation ---------------------------------------------------------------------------------------------------

int hb_generate_options_create(hb_generate_options** options) noexcept {
    return guarded("hb_generate_options_create", [&] { place(options, "options", [] { return new hb_generate_options; }); });
}

void hb_generate_options_free(hb_generate_options* options) noexcept { delete options; }

int hb_generate_options_set_max_tokens(hb_generate_options* options, size_t tokens) noexcept {
    return set("hb_generate_options_set_max_tokens", options,
               [&](GenerateOptions& o) { o.max_tokens = signed_size(tokens, "max_tokens"); });
}

int hb_generate_options_set_temperature(hb_generate_options* options, float value) noexcept {
    return set("hb_generate_options_set_temperature", options, [&](GenerateOptions& o) { o.sampling.temperature = value; });
}

int hb_generate_options_set_top_k(hb_generate_options* options, size_t count) noexcept {
    return set("hb_generate_options_set_top_k", options,
               [&](GenerateOptions& o) { o.sampling.top_k = signed_size(count, "top_k"); });
}

int hb_generate_options_set_top_p(hb_generate_options* options, float value) noexcept {
    return set("hb_generate_options_set_top_p", options, [&](GenerateOptions& o) { o.sampling.top_p = value; });
}

int hb_generate_options_set_min_p(hb_generate_options* options, float value) noexcept {
    return set("hb_generate_options_set_min_p", options, [&](GenerateOptions& o) { o.sampling.min_p = value; });
}

int hb_generate_options_set_repetition_penalty(hb_generate_options* options, float value) noexcept {
    return set("hb_generate_options_set_repetition_penalty", options,
               [&](GenerateOptions& o) { o.sampling.repetition_penalty = value; });
}

int hb_generate_options_set_presence_penalty(hb_generate_options* options, float value) noexcept {
    return set("hb_generate_options_set_presence_penalty", options,
               [&](GenerateOptions& o) { o.sampling.presence_penalty = value; });
}

int hb_generate_options_set_frequency_penalty(hb_generate_options* options, float value) noexcept {
    return set("hb_generate_options_set_frequency_penalty", options,
               [&](GenerateOptions& o) { o.sampling.frequency_penalty = value; });
}

int hb_generate_options_set_seed(hb_generate_options* options, uint64_t seed) noexcept {
    return set("hb_generate_options_set_seed", options, [&](GenerateOptions& o) { o.sampling.seed = seed; });
}

int hb_generate_options_add_stop_token(hb_generate_options* options, int32_t token) noexcept {
    return set("hb_generate_options_add_stop_token", options, [&](GenerateOptions& o) { o.stop_tokens.push_back(token); });
}

int hb_generate_options_add_stop_text(hb_generate_options* options, const char* text) noexcept {
    return set("hb_generate_options_add_stop_text", options,
               [&](GenerateOptions& o) { o.stop.emplace_back(&at(text, "text")); });
}

int hb_generate_options_set_adapter(hb_generate_options* options, const char* name) noexcept {
    return guarded("hb_generate_options_set_adapter", [&] {
        std::vector<std::pair<std::string, float>>& adapters = at(options, "options").adapters;
        adapters.clear();
        if (name != nullptr) adapters.emplace_back(name, 1.0f);
    });
}

int hb_generate_options_add_adapter(hb_generate_options* options, const char* name, float weight) noexcept {
    return guarded("hb_generate_options_add_adapter",
                   [&] { at(options, "options").adapters.emplace_back(&at(name, "name"), weight); });
}

int hb_generate(const hb_model* model, const int32_t* prompt, size_t prompt_size, const hb_generate_options* options,
                hb_token_callback callback, void* user) noexcept {
    return guarded("hb_generate", [&] {
        if (callback == nullptr) fail(ErrorCode::invalid_argument, "callback is a null pointer");
        Generation generation = start(model, prompt, prompt_size, options);
        size_t told = 0;
        while (generation.step())
            for (; told < generation.tokens().size(); told++)
                if (callback(generation.tokens()[told], user) != 0)
                    fail(ErrorCode::cancelled, "the callback asked to stop after ", told + 1, " tokens");
    });
}

int hb_generation_create(const hb_model* model, const int32_t* prompt, size_t prompt_size,
                         const hb_generate_options* options, hb_generation** generation) noexcept {
    return guarded("hb_generation_create", [&] {
        place(generation, "generation", [&] { return new hb_generation{start(model, prompt, prompt_size, options)}; });
    });
}

void hb_generation_free(hb_generation* generation) noexcept { delete generation; }

int hb_generation_step(hb_generation* generation, int* worked) noexcept {
    return guarded("hb_generation_step", [&] {
        at(worked, "worked");
        *worked = at(generation, "generation").generation.step() ? 1 : 0;
    });
}

int hb_generation_tokens(const hb_generation* generation, const int32_t** tokens, size_t* count) noexcept {
    return guarded("hb_generation_tokens", [&] {
        const std::vector<int32_t>& all = at(generation, "generation").generation.tokens();
        at(tokens, "tokens"), at(count, "count");
        *tokens = all.data(), *count = all.size();
    });
}

int hb_generation_piece(const hb_generation* generation, const char** text, size_t* size) noexcept {
    return guarded("hb_generation_piece", [&] {
        const std::string& piece = at(generation, "generation").generation.piece();
        at(text, "text"), at(size, "size");
        *text = piece.c_str(), *size = piece.size();
    });
}

int hb_generation_finish_reason(const hb_generation* generation, const char** reason) noexcept {
    return guarded("hb_generation_finish_reason", [&] {
        const Generation& running = at(generation, "generation").generation;
        at(reason, "reason") = running.finish_reason().c_str();
    });
}
