#include <algorithm>
#include <map>
#include <tuple>

#include "bindings/python.h"
#include "core/error.h"
#include "runtime/decoder.h"
#include "runtime/engine.h"
#include "runtime/lora_config.h"

namespace halfbyte::python {

namespace {

/// One-dimensional, of exactly this element type: a silent conversion could turn one token id into another.
template <class T>
using Vector = py::array_t<T, py::array::c_style>;

template <class T>
std::span<const T> view(const Vector<T>& array, const char* name) {
    if (array.ndim() != 1) fail(ErrorCode::invalid_argument, name, ": expected one dimension, found ", array.ndim());
    return {array.data(), size_t(array.size())};
}

template <class T>
std::span<const T> view(const std::optional<Vector<T>>& array, const char* name) {
    return array ? view(*array, name) : std::span<const T>();
}

/// [(name, weight), ...]: what one sequence runs with.
using NamedMix = std::vector<std::pair<std::string, float>>;

/// Adapters that are on disk are read, without the GIL.
AdapterMix find_mix(const Engine& engine, const std::optional<NamedMix>& names) {
    const py::gil_scoped_release unlocked;
    std::vector<AdapterMix::Part> parts;
    for (const auto& [name, weight] : names.value_or(NamedMix())) parts.push_back({engine.adapters().get(name), weight});
    return AdapterMix(std::move(parts));
}

/// One for all sequences or one for each; null: none.
using NamedMixes = std::optional<std::vector<NamedMix>>;

std::vector<AdapterMix> find_mixes(const Engine& engine, const NamedMixes& names) {
    std::vector<AdapterMix> mixes;
    if (!names) return mixes;
    for (const NamedMix& each : *names) mixes.push_back(find_mix(engine, each));
    return mixes;
}

/// float32 [rows, cols], filled by `compute` without the GIL.
template <class F>
py::array_t<float> matrix(size_t rows, int64_t cols, F compute) {
    py::array_t<float> out({py::ssize_t(rows), py::ssize_t(cols)});
    float* data = out.mutable_data();
    const py::gil_scoped_release unlocked;
    compute(data);
    return out;
}

std::shared_ptr<Engine> load(const std::string& path, const std::string& device, int threads, const std::string& precision,
                             const std::string& quantize, const py::object& progress, const std::string& output_layer,
                             const std::string& kv_cache,
                             const std::map<std::string, std::tuple<std::string, int, bool>>& layers, size_t device_memory) {
    EngineOptions options{device, threads, parse_precision(precision), quantize, output_layer};
    for (const auto& [name, rounding] : layers) {
        const auto& [format, block_size, double_quant] = rounding;
        options.layers[name] = {format, block_size, double_quant};
    }
    options.device_memory = device_memory;
    if (!kv_cache.empty()) options.kv_cache = parse_kv_cache(kv_cache);
    options.progress = [&](double done) {
        const py::gil_scoped_acquire locked;
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();  // Ctrl-C
        if (!progress.is_none()) progress(done);
    };
    const py::gil_scoped_release unlocked;
    return Engine::load(path, options);
}

py::dict info(const Engine& engine) {
    const ModelInfo& model = engine.info();
    py::list weights;
    for (const Model::WeightReport& weight : engine.model().weights()) {
        py::dict entry;
        entry["name"] = weight.name;
        entry["storage"] = weight.storage;
        entry["rows"] = weight.rows;
        entry["cols"] = weight.cols;
        entry["bytes"] = weight.bytes;
        weights.append(entry);
    }
    py::dict out;
    out["architecture"] = model.architecture;
    out["format"] = engine.format();
    out["path"] = engine.path();
    out["causal"] = model.causal;
    out["has_logits"] = model.has_logits;
    out["vocab_size"] = model.vocab_size;
    out["hidden_size"] = model.hidden_size;
    out["layers"] = model.layers;
    out["max_positions"] = model.max_positions;
    out["heads"] = model.heads;
    out["kv_heads"] = model.kv_heads;
    out["head_dim"] = model.head_dim;
    out["token_types"] = model.token_types;
    out["device"] = engine.device().description();
    out["precision"] = name_of(engine.device().precision());
    out["kv_cache"] = name_of(engine.cache_dtype());
    out["load_seconds"] = engine.load_seconds();
    out["weights"] = weights;
    return out;
}

/// What an adapter does, module by module.
py::dict adapter_info(const Engine& engine, const std::string& name) {
    std::shared_ptr<const Adapter> adapter;
    {
        const py::gil_scoped_release unlocked;
        adapter = engine.adapters().get(name);
    }
    const std::vector<Module>& all = engine.model().modules();
    py::list modules;
    for (const auto& [place, m] : adapter->modules()) {
        py::dict entry;
        entry["name"] = all[size_t(place.second)].name;
        if (place.first >= 0) entry["pass"] = place.first;
        py::list does;
        const LoraFactors& lora = m.linear.lora;
        if (m.replaced || m.table || m.norm) does.append("weights");
        if (lora.rank > 0) {
            does.append(m.lookup ? "lora_embedding" : "lora");
            entry["rank"] = lora.rank, entry["scale"] = lora.scale;
            entry["dtype"] = name_of(lora.b_dtype);
        }
        if (m.linear.gain.data != nullptr) does.append(lora.rank > 0 ? "dora" : "ia3");
        if (m.input_gain.data != nullptr) does.append("ia3_input");
        if (m.linear.shift.data != nullptr) does.append("bias");
        if (!m.row_of.empty() || !m.columns.empty()) does.append("tokens");
        entry["does"] = does;
        modules.append(entry);
    }
    py::dict out;
    out["name"] = adapter->name();
    out["kind"] = adapter->kind();
    out["bytes"] = adapter->bytes();
    out["prompt_tokens"] = adapter->prompt_tokens();
    out["prefix_tokens"] = adapter->prefix_tokens();
    out["invocation_tokens"] = adapter->invocation_tokens();
    out["vocab_size"] = adapter->vocab_size();
    out["labels"] = adapter->labels();
    out["layers"] = adapter->layers();
    out["modules"] = modules;
    return out;
}

/// A generation that Python threads may share by accident: calls take turns.
struct PyGeneration {
    Generation generation;
    std::mutex mutex;

    template <class F>
    auto locked(F f) {
        const py::gil_scoped_release unlocked;  // released first: whoever holds the mutex may be waiting for the GIL
        const std::lock_guard lock(mutex);
        return f(generation);
    }
};

std::unique_ptr<PyGeneration> generate(const std::shared_ptr<Engine>& engine, const Vector<int32_t>& prompt,
                                       int64_t max_tokens, float temperature, int64_t top_k, float top_p, float min_p,
                                       float repetition_penalty, float presence_penalty, float frequency_penalty,
                                       uint64_t seed, std::vector<std::string> stop, std::vector<int32_t> stop_tokens,
                                       const std::optional<NamedMix>& adapter) {
    GenerateOptions options{
        max_tokens,
        {temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, seed},
        std::move(stop),
        std::move(stop_tokens),
        find_mix(*engine, adapter)};
    const std::span<const int32_t> tokens = view(prompt, "prompt");
    return std::unique_ptr<PyGeneration>(new PyGeneration{Generation(engine, tokens, std::move(options)), {}});
}

void bind_decoder(py::module_& m) {
    py::class_<BatchDecoder>(m, "BatchDecoder")
        .def(py::init(
                 [](const std::shared_ptr<Engine>& engine, int64_t sequences, int64_t capacity, const NamedMixes& adapters) {
                     return std::make_unique<BatchDecoder>(engine, sequences, capacity, find_mixes(*engine, adapters));
                 }),
             py::arg("engine"), py::arg("sequences"), py::arg("capacity"), py::arg("adapters"))
        .def(
            "extend",
            [](BatchDecoder& self, const Vector<int32_t>& tokens, const Vector<int64_t>& lengths) {
                const std::span<const int32_t> ids = view(tokens, "tokens");
                const std::span<const int64_t> counts = view(lengths, "lengths");
                const py::gil_scoped_release unlocked;
                self.extend(ids, counts);
            },
            py::arg("tokens"), py::arg("lengths"))
        .def("truncate", &BatchDecoder::truncate, py::arg("tokens"))
        .def_property_readonly("logits", [](const BatchDecoder& self) {
            return matrix(size_t(self.sequences()), self.vocab_size(),
                          [&](float* out) { std::copy(self.logits().begin(), self.logits().end(), out); });
        });
}

// Tests hold these two against the reference packages.

void bind_sampler(py::module_& m) {
    // Logits are taken as they are and copied: the sampler changes them.
    const auto copy = [](const Vector<float>& logits) {
        const std::span<const float> values = view(logits, "logits");
        return std::vector<float>(values.begin(), values.end());
    };
    py::class_<Sampler>(m, "Sampler")
        .def(py::init([](float temperature, int64_t top_k, float top_p, float min_p, float repetition_penalty,
                         float presence_penalty, float frequency_penalty, uint64_t seed) {
                 return Sampler(
                     {temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, seed});
             }),
             py::kw_only(), py::arg("temperature") = 0.0f, py::arg("top_k") = 0, py::arg("top_p") = 1.0f,
             py::arg("min_p") = 0.0f, py::arg("repetition_penalty") = 1.0f, py::arg("presence_penalty") = 0.0f,
             py::arg("frequency_penalty") = 0.0f, py::arg("seed") = 0)
        .def(
            "observe_prompt",
            [](Sampler& sampler, const Vector<int32_t>& tokens) { sampler.observe_prompt(view(tokens, "tokens")); },
            py::arg("tokens"))
        .def(
            "sample",
            [copy](Sampler& sampler, const Vector<float>& logits) {
                std::vector<float> values = copy(logits);
                return sampler.sample(values);
            },
            py::arg("logits"))
        .def(
            "probabilities",
            [copy](Sampler& sampler, const Vector<float>& logits) {
                std::vector<float> values = copy(logits);
                py::array_t<double> out(py::ssize_t(values.size()));
                sampler.probabilities(values, {out.mutable_data(), values.size()});
                return out;
            },
            py::arg("logits"));
}

void bind_text_stream(py::module_& m) {
    py::class_<TextStream>(m, "TextStream")
        .def(py::init<std::vector<std::string>>(), py::arg("stop"))
        .def(
            "push", [](TextStream& text, const py::bytes& bytes) { return text.push(std::string_view(bytes)); },
            py::arg("data"))
        .def("finish", &TextStream::finish)
        .def_property_readonly("stopped", &TextStream::stopped);
}

}  // namespace

void bind_engine(py::module_& m) {
    m.def("architectures", [] {
        std::vector<std::string> names;
        for (const Architecture* architecture : architectures()) names.emplace_back(architecture->name);
        return names;
    });
    m.def(
        "lora_scale",
        [](const std::string& config, const std::string& where, const std::string& module, int64_t rank) {
            return LoraConfig(config, where).scale(module, rank);
        },
        py::arg("config"), py::arg("where"), py::arg("module"), py::arg("rank"));
    bind_sampler(m);
    bind_text_stream(m);

    py::class_<PyGeneration>(m, "Generation")
        .def("step",
             [](PyGeneration& self) { return self.locked([](Generation& generation) { return generation.step(); }); })
        .def_property_readonly(
            "piece",
            [](PyGeneration& self) { return self.locked([](Generation& generation) { return generation.piece(); }); })
        .def_property_readonly(
            "tokens",
            [](PyGeneration& self) { return self.locked([](Generation& generation) { return generation.tokens(); }); })
        .def_property_readonly("finish_reason", [](PyGeneration& self) {
            return self.locked([](Generation& generation) { return generation.finish_reason(); });
        });

    using Tokens = Vector<int32_t>;
    using OptionalTokens = std::optional<Vector<int32_t>>;
    py::class_<Engine, std::shared_ptr<Engine>>(m, "Engine")
        .def_static("load", &load, py::arg("path"), py::arg("device"), py::arg("threads"), py::arg("precision"),
                    py::arg("quantize"), py::arg("progress"), py::arg("output_layer") = "", py::arg("kv_cache") = "",
                    py::arg("layers") = std::map<std::string, std::tuple<std::string, int, bool>>(),
                    py::arg("device_memory") = 0)
        .def("info", &info)
        .def_property_readonly("parallel_regions",
                               [](const Engine& engine) { return engine.device().host_pool().regions(); })
        .def_property_readonly("replays", [](const Engine& engine) { return engine.device().replays(); })
        .def(
            "logits",
            [](const Engine& engine, const Tokens& tokens, const Vector<int64_t>& lengths, const NamedMixes& adapters) {
                const std::vector<AdapterMix> mixes = find_mixes(engine, adapters);
                const TokenBatch batch{view(tokens, "tokens"), view(lengths, "lengths"), {}, {}, mixes};
                return matrix(batch.tokens.size(), engine.logits_size(batch),
                              [&](float* out) { engine.logits(batch, out); });
            },
            py::arg("tokens"), py::arg("lengths"), py::arg("adapters"))
        .def(
            "hidden_states",
            [](const Engine& engine, const Tokens& tokens, const Vector<int64_t>& lengths, const OptionalTokens& positions,
               const OptionalTokens& token_types, const NamedMixes& adapters) {
                const std::vector<AdapterMix> mixes = find_mixes(engine, adapters);
                const TokenBatch batch{view(tokens, "tokens"), view(lengths, "lengths"), view(positions, "positions"),
                                       view(token_types, "token_types"), mixes};
                return matrix(batch.tokens.size(), engine.info().hidden_size,
                              [&](float* out) { engine.hidden_states(batch, out); });
            },
            py::arg("tokens"), py::arg("lengths"), py::arg("positions"), py::arg("token_types"), py::arg("adapters"))
        .def(
            "embed",
            [](const Engine& engine, const Tokens& tokens, const Vector<int64_t>& lengths, const OptionalTokens& token_types,
               const std::string& pooling, bool normalize, const NamedMixes& adapters) {
                const std::vector<AdapterMix> mixes = find_mixes(engine, adapters);
                const TokenBatch batch{
                    view(tokens, "tokens"), view(lengths, "lengths"), {}, view(token_types, "token_types"), mixes};
                const Pooling kind = parse_pooling(pooling);
                return matrix(batch.lengths.size(), engine.info().hidden_size,
                              [&](float* out) { engine.embed(batch, kind, normalize, out); });
            },
            py::arg("tokens"), py::arg("lengths"), py::arg("token_types"), py::arg("pooling"), py::arg("normalize"),
            py::arg("adapters"))
        .def(
            "classify",
            [](const Engine& engine, const Tokens& tokens, const Vector<int64_t>& lengths, const OptionalTokens& token_types,
               bool per_token, const NamedMixes& adapters) {
                const std::vector<AdapterMix> mixes = find_mixes(engine, adapters);
                const TokenBatch batch{
                    view(tokens, "tokens"), view(lengths, "lengths"), {}, view(token_types, "token_types"), mixes};
                return matrix(per_token ? batch.tokens.size() : batch.lengths.size(), engine.labels(batch),
                              [&](float* out) { engine.classify(batch, per_token, out); });
            },
            py::arg("tokens"), py::arg("lengths"), py::arg("token_types"), py::arg("per_token"), py::arg("adapters"))
        .def(
            "load_adapter",
            [](Engine& engine, const std::string& path, const std::string& name, bool pinned, bool lazily) {
                engine.adapters().add(path, name, pinned, lazily);
            },
            py::arg("path"), py::arg("name"), py::arg("pinned"), py::arg("lazily"), py::call_guard<py::gil_scoped_release>())
        .def(
            "unload_adapter", [](Engine& engine, const std::string& name) { engine.adapters().remove(name); },
            py::arg("name"), py::call_guard<py::gil_scoped_release>())
        .def("adapter_names", [](const Engine& engine) { return engine.adapters().names(); })
        .def(
            "set_adapter_budget", [](Engine& engine, uint64_t bytes) { engine.adapters().set_budget(bytes); },
            py::arg("bytes"), py::call_guard<py::gil_scoped_release>())
        .def("adapter_stats",
             [](const Engine& engine) {
                 const AdapterRegistry::Stats stats = engine.adapters().stats();
                 py::dict out;
                 out["hits"] = stats.hits;
                 out["misses"] = stats.misses;
                 out["put_away"] = stats.put_away;
                 out["resident"] = stats.resident;
                 out["bytes"] = stats.bytes;
                 out["budget"] = stats.budget;
                 return out;
             })
        .def("adapter_info", &adapter_info, py::arg("name"))
        .def("modules",
             [](const Engine& engine) {
                 py::list out;
                 for (const Module& module : engine.model().modules())
                     if (module.kind == Module::Kind::linear && module.out_features > 0)
                         out.append(py::make_tuple(module.name, module.in_features, module.out_features));
                 return out;
             })
        .def(
            "set_vocabulary",
            [](Engine& engine, const std::vector<py::bytes>& pieces) {
                std::vector<std::string> vocabulary;
                vocabulary.reserve(pieces.size());
                for (const py::bytes& piece : pieces) vocabulary.emplace_back(std::string_view(piece));
                engine.set_vocabulary(std::move(vocabulary));
            },
            py::arg("pieces"))
        .def("generate", &generate, py::arg("prompt"), py::arg("max_tokens"), py::arg("temperature"), py::arg("top_k"),
             py::arg("top_p"), py::arg("min_p"), py::arg("repetition_penalty"), py::arg("presence_penalty"),
             py::arg("frequency_penalty"), py::arg("seed"), py::arg("stop"), py::arg("stop_tokens"), py::arg("adapter"));
    bind_decoder(m);
}

}  // namespace halfbyte::python
