// halfbyte for C++17: objects that close themselves, errors as exceptions. Header-only, over halfbyte.h; what a call does is
// told there. Namespace hb, so that nothing here can meet the library's own symbols.
#ifndef HALFBYTE_HPP
#define HALFBYTE_HPP

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "halfbyte/halfbyte.h"

namespace hb {

/// what() is hb_last_error().
class Error : public std::runtime_error {
public:
    Error(int status, const std::string& text) : std::runtime_error(text), status_(status) {}
    int status() const noexcept { return status_; }

private:
    int status_;
};

inline void check(int status) {
    if (status != HB_OK) throw Error(status, hb_last_error());
}

namespace detail {
struct Delete {
    void operator()(hb_options* p) const noexcept { hb_options_free(p); }
    void operator()(hb_model* p) const noexcept { hb_model_close(p); }
    void operator()(hb_generate_options* p) const noexcept { hb_generate_options_free(p); }
    void operator()(hb_generation* p) const noexcept { hb_generation_free(p); }
};
template <class T>
using Handle = std::unique_ptr<T, Delete>;
}  // namespace detail

/// Setters return the object: hb::Options().threads(4).quantize("nf4").
class Options {
public:
    Options() {
        hb_options* made = nullptr;
        check(hb_options_create(&made));
        handle_.reset(made);
    }
    Options& device(const std::string& name) { return check(hb_options_set_device(get(), name.c_str())), *this; }
    Options& threads(int count) { return check(hb_options_set_threads(get(), count)), *this; }
    Options& precision(const std::string& name) { return check(hb_options_set_precision(get(), name.c_str())), *this; }
    Options& quantize(const std::string& format) { return check(hb_options_set_quantize(get(), format.c_str())), *this; }
    Options& kv_cache(const std::string& dtype) { return check(hb_options_set_kv_cache(get(), dtype.c_str())), *this; }
    hb_options* get() const noexcept { return handle_.get(); }

private:
    detail::Handle<hb_options> handle_;
};

class GenerateOptions {
public:
    GenerateOptions() {
        hb_generate_options* made = nullptr;
        check(hb_generate_options_create(&made));
        handle_.reset(made);
    }
    GenerateOptions& max_tokens(size_t n) { return check(hb_generate_options_set_max_tokens(get(), n)), *this; }
    GenerateOptions& temperature(float v) { return check(hb_generate_options_set_temperature(get(), v)), *this; }
    GenerateOptions& top_k(size_t n) { return check(hb_generate_options_set_top_k(get(), n)), *this; }
    GenerateOptions& top_p(float v) { return check(hb_generate_options_set_top_p(get(), v)), *this; }
    GenerateOptions& min_p(float v) { return check(hb_generate_options_set_min_p(get(), v)), *this; }
    GenerateOptions& repetition_penalty(float v) {
        return check(hb_generate_options_set_repetition_penalty(get(), v)), *this;
    }
    GenerateOptions& presence_penalty(float v) { return check(hb_generate_options_set_presence_penalty(get(), v)), *this; }
    GenerateOptions& frequency_penalty(float v) { return check(hb_generate_options_set_frequency_penalty(get(), v)), *this; }
    GenerateOptions& seed(uint64_t n) { return check(hb_generate_options_set_seed(get(), n)), *this; }
    GenerateOptions& stop_token(int32_t id) { return check(hb_generate_options_add_stop_token(get(), id)), *this; }
    GenerateOptions& stop_text(const std::string& text) {
        return check(hb_generate_options_add_stop_text(get(), text.c_str())), *this;
    }
    GenerateOptions& adapter(const std::string& name) {
        return check(hb_generate_options_set_adapter(get(), name.c_str())), *this;
    }
    /// One more, with a weight.
    GenerateOptions& add_adapter(const std::string& name, float weight) {
        return check(hb_generate_options_add_adapter(get(), name.c_str(), weight)), *this;
    }
    hb_generate_options* get() const noexcept { return handle_.get(); }

private:
    detail::Handle<hb_generate_options> handle_;
};

/// One running generation: while (generation.step()) std::cout << generation.piece();
class Generation {
public:
    Generation(const hb_model* model, const std::vector<int32_t>& prompt, const GenerateOptions& options) {
        hb_generation* made = nullptr;
        check(hb_generation_create(model, prompt.data(), prompt.size(), options.get(), &made));
        handle_.reset(made);
    }
    /// False where it had finished before: nothing was done.
    bool step() {
        int worked = 0;
        check(hb_generation_step(handle_.get(), &worked));
        return worked != 0;
    }
    std::vector<int32_t> tokens() const {
        const int32_t* all = nullptr;
        size_t count = 0;
        check(hb_generation_tokens(handle_.get(), &all, &count));
        return std::vector<int32_t>(all, all + count);
    }
    std::string piece() const {
        const char* text = nullptr;
        size_t size = 0;
        check(hb_generation_piece(handle_.get(), &text, &size));
        return std::string(text, size);
    }
    std::string finish_reason() const {
        const char* reason = nullptr;
        check(hb_generation_finish_reason(handle_.get(), &reason));
        return reason;
    }

private:
    detail::Handle<hb_generation> handle_;
};

class Model {
public:
    explicit Model(const std::string& path, const Options& options = Options()) {
        hb_model* made = nullptr;
        check(hb_model_open(path.c_str(), options.get(), &made));
        handle_.reset(made);
    }
    std::string architecture() const { return read<const char*>(hb_model_architecture); }
    std::string format() const { return read<const char*>(hb_model_format); }
    size_t vocab_size() const { return read<size_t>(hb_model_vocab_size); }
    size_t hidden_size() const { return read<size_t>(hb_model_hidden_size); }
    size_t layers() const { return read<size_t>(hb_model_layers); }
    size_t max_positions() const { return read<size_t>(hb_model_max_positions); }
    bool is_causal() const { return read<int>(hb_model_is_causal) != 0; }
    bool has_logits() const { return read<int>(hb_model_has_logits) != 0; }

    void set_vocabulary(const std::vector<std::string>& pieces) {
        std::vector<const char*> texts;
        std::vector<size_t> lengths;
        for (const std::string& piece : pieces) texts.push_back(piece.data()), lengths.push_back(piece.size());
        check(hb_model_set_vocabulary(get(), texts.data(), lengths.data(), pieces.size()));
    }
    void attach_adapter(const std::string& folder, const std::string& name) {
        check(hb_model_attach_adapter(get(), folder.c_str(), name.c_str()));
    }
    /// Read when it is first named.
    void register_adapter(const std::string& folder, const std::string& name, bool pinned = false) {
        check(hb_model_register_adapter(get(), folder.c_str(), name.c_str(), pinned ? 1 : 0));
    }
    void set_adapter_budget(uint64_t bytes) { check(hb_model_set_adapter_budget(get(), bytes)); }
    void detach_adapter(const std::string& name) { check(hb_model_detach_adapter(get(), name.c_str())); }

    /// [tokens, columns] of one sequence; columns: vocab_size, or that of a resized adapter. adapter: empty for none.
    std::vector<float> logits(const std::vector<int32_t>& tokens, const std::string& adapter = "") const {
        size_t columns = 0;
        check(hb_logits_size(get(), or_null(adapter), &columns));
        std::vector<float> out(tokens.size() * columns);
        const size_t length = tokens.size();
        check(hb_logits(get(), tokens.data(), &length, 1, or_null(adapter), out.data(), out.size()));
        return out;
    }
    /// [tokens, hidden_size] of one sequence.
    std::vector<float> hidden_states(const std::vector<int32_t>& tokens, const std::string& adapter = "") const {
        std::vector<float> out(tokens.size() * hidden_size());
        const size_t length = tokens.size();
        check(hb_hidden_states(get(), tokens.data(), nullptr, &length, 1, or_null(adapter), out.data(), out.size()));
        return out;
    }
    /// [sequences, hidden_size].
    std::vector<float> embed(const std::vector<std::vector<int32_t>>& sequences, const std::string& pooling = "mean",
                             bool normalize = true, const std::string& adapter = "") const {
        std::vector<int32_t> tokens;
        std::vector<size_t> lengths;
        for (const auto& sequence : sequences) {
            tokens.insert(tokens.end(), sequence.begin(), sequence.end());
            lengths.push_back(sequence.size());
        }
        std::vector<float> out(sequences.size() * hidden_size());
        check(hb_embed(get(), tokens.data(), nullptr, lengths.data(), lengths.size(), pooling.c_str(), normalize,
                       or_null(adapter), out.data(), out.size()));
        return out;
    }

    /// [labels] of one sequence, before any softmax.
    std::vector<float> classify(const std::vector<int32_t>& tokens, const std::string& adapter = "") const {
        size_t labels = 0;
        check(hb_labels(get(), or_null(adapter), &labels));
        std::vector<float> out(labels);
        const size_t length = tokens.size();
        check(hb_classify(get(), tokens.data(), nullptr, &length, 1, 0, or_null(adapter), out.data(), out.size()));
        return out;
    }

    /// The generated tokens. on_token, if given, sees each as it comes and returns false to stop; what it throws is thrown
    /// on.
    std::vector<int32_t> generate(const std::vector<int32_t>& prompt, const GenerateOptions& options = GenerateOptions(),
                                  const std::function<bool(int32_t)>& on_token = nullptr) const {
        struct State {
            const std::function<bool(int32_t)>& on_token;
            std::vector<int32_t> tokens;
            std::exception_ptr thrown;
        } state{on_token, {}, nullptr};
        const auto callback = [](int32_t token, void* user) -> int {
            auto& s = *static_cast<State*>(user);
            try {
                s.tokens.push_back(token);
                return s.on_token && !s.on_token(token) ? 1 : 0;
            } catch (...) {
                s.thrown = std::current_exception();
                return 1;
            }
        };
        const int status = hb_generate(get(), prompt.data(), prompt.size(), options.get(), callback, &state);
        if (state.thrown) std::rethrow_exception(state.thrown);
        if (status != HB_CANCELLED) check(status);
        return std::move(state.tokens);
    }
    Generation start(const std::vector<int32_t>& prompt, const GenerateOptions& options = GenerateOptions()) const {
        return Generation(get(), prompt, options);
    }
    hb_model* get() const noexcept { return handle_.get(); }

private:
    template <class T>
    T read(int (*getter)(const hb_model*, T*) noexcept) const {
        T value{};
        check(getter(get(), &value));
        return value;
    }
    static const char* or_null(const std::string& name) { return name.empty() ? nullptr : name.c_str(); }

    detail::Handle<hb_model> handle_;
};

}  // namespace hb

#endif  // HALFBYTE_HPP
