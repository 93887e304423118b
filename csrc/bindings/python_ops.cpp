#include <algorithm>
#include <cstring>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "bindings/python.h"
#include "core/error.h"
#include "device/isa.h"
#include "device/on_host.h"
#include "nn/context.h"
#include "runtime/engine.h"

namespace halfbyte::python {

Weight PyWeight::uploaded_to(const std::shared_ptr<Device>& device) {
    const std::lock_guard lock(mutex_);
    std::erase_if(uploads_, [](const auto& entry) { return entry.first.expired(); });
    for (const auto& [owner, uploaded] : uploads_)
        if (owner.lock() == device) return uploaded;
    uploads_.emplace_back(device, device->upload(weight));
    return uploads_.back().second;
}

namespace {

using FloatArray = Array<float>;

template <class... Parts>
void check(bool condition, const char* op, const Parts&... parts) {
    if (!condition) fail(ErrorCode::invalid_argument, op, ": ", parts...);
}

std::string shape_of(const py::array& array) { return py::str(array.attr("shape")); }

/// A numpy matrix as a Tensor; the array outlives the call.
Tensor matrix(const FloatArray& array, const char* op, const char* name) {
    check(array.ndim() == 2, op, name, " must be [rows, columns], found shape ", shape_of(array));
    return {const_cast<float*>(array.data()), array.shape(0), array.shape(1)};
}

const float* vector_or_null(const std::optional<FloatArray>& array, int64_t size, const char* op, const char* name) {
    if (!array) return nullptr;
    check(array->ndim() == 1 && array->shape(0) == size, op, name, " must have shape (", size, ",), found ",
          shape_of(*array));
    return array->data();
}

FloatArray new_matrix(int64_t rows, int64_t cols) { return FloatArray({py::ssize_t(rows), py::ssize_t(cols)}); }

FloatArray copy_of(const FloatArray& array) {
    FloatArray copy(std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()));
    if (array.nbytes() > 0) std::memcpy(copy.mutable_data(), array.data(), size_t(array.nbytes()));
    return copy;
}

/// An array seen as one matrix whose rows are its last dimension, whatever its rank.
Tensor rows_of(FloatArray& array) {
    const int64_t cols = array.ndim() == 0 ? 1 : array.shape(array.ndim() - 1);
    return {array.mutable_data(), cols == 0 ? 0 : array.size() / cols, cols};
}

Activation activation_named(const std::string& name) {
    constexpr std::pair<std::string_view, Activation> kNames[] = {
        {"none", Activation::none},           {"relu", Activation::relu}, {"gelu", Activation::gelu},
        {"gelu_tanh", Activation::gelu_tanh}, {"silu", Activation::silu}, {"tanh", Activation::tanh}};
    for (const auto& [known, activation] : kNames)
        if (name == known) return activation;
    fail(ErrorCode::invalid_argument, "activation: expected none, relu, gelu, gelu_tanh, silu or tanh, found \"", name,
         "\"");
}

Precision precision_named(const std::string& name) {
    if (name == "high") return Precision::high;
    if (name == "fast") return Precision::fast;
    if (name == "float32") return Precision::float32;
    fail(ErrorCode::invalid_argument, "precision: expected \"high\", \"fast\" or \"float32\", found \"", name, "\"");
}

DType factor_dtype(const py::array& array, const char* name) {
    if (py::isinstance<py::array_t<float>>(array)) return DType::f32;
    if (array.dtype().kind() == 'f' && array.itemsize() == 2) return DType::f16;
    if (py::isinstance<py::array_t<uint16_t>>(array)) return DType::bf16;
    fail(ErrorCode::invalid_argument, "lora: ", name, " must be float32, float16 or uint16 (bfloat16), found ",
         std::string(py::str(py::object(array.dtype()))));
}

/// Uploaded adapters of one layer; rank 0: the adapter leaves it alone.
struct Adapters {
    std::vector<LinearAdapter> factors;
    std::vector<const LinearAdapter*> pointers;
    std::vector<std::vector<int32_t>> lists;
    std::vector<AdapterRows> rows;

    Adapters(Device& device, const std::vector<py::array>& a, const std::vector<py::array>& b,
             const std::vector<float>& scales, int64_t in, int64_t out, const std::optional<Array<int32_t>>& row_adapter,
             int64_t count) {
        check(a.size() == b.size() && a.size() == scales.size(), "lora", a.size(), " matrices A, ", b.size(),
              " matrices B, ", scales.size(), " scales");
        for (size_t i = 0; i < a.size(); i++) {
            check(a[i].ndim() == 2 && b[i].ndim() == 2 && a[i].shape(1) == in && b[i].shape(0) == out &&
                      a[i].shape(0) == b[i].shape(1),
                  "lora", "A must be [rank, ", in, "] and B [", out, ", rank], found ", shape_of(a[i]), " and ",
                  shape_of(b[i]));
            check((a[i].flags() & py::array::c_style) != 0 && (b[i].flags() & py::array::c_style) != 0, "lora",
                  "A and B must be C-contiguous");
            factors.emplace_back().lora = device.upload_lora({a[i].data(), b[i].data(), factor_dtype(a[i], "A"),
                                                              factor_dtype(b[i], "B"), a[i].shape(0), in, out, scales[i]});
        }
        for (const LinearAdapter& each : factors) pointers.push_back(each.lora.rank > 0 ? &each : nullptr);
        assign_rows(row_adapter, count);
    }

    /// row_adapter: [count], an adapter or -1; absent: every row is the first adapter's.
    void assign_rows(const std::optional<Array<int32_t>>& row_adapter, int64_t count) {
        lists.resize(factors.size());
        if (!row_adapter) {
            rows.assign(factors.size(), {nullptr, 0, 1.0f});
            if (!rows.empty()) rows[0] = {};
            return;
        }
        check(row_adapter->ndim() == 1 && row_adapter->shape(0) == count, "lora", "row_adapter must have shape (", count,
              ",), found ", shape_of(*row_adapter));
        for (int64_t r = 0; r < count; r++) {
            const int32_t index = row_adapter->data()[r];
            check(index >= -1 && index < int64_t(factors.size()), "lora", "row_adapter[", r, "] is ", index,
                  ", expected -1 to ", int64_t(factors.size()) - 1);
            if (index >= 0) lists[size_t(index)].push_back(int32_t(r));
        }
        for (const std::vector<int32_t>& list : lists) rows.push_back({list.data(), int64_t(list.size()), 1.0f});
    }
};

class Ops {
public:
    Ops(const std::string& device, int threads, const std::string& precision) {
        const DeviceOptions options{threads, precision_named(precision)};
        const py::gil_scoped_release release;
        device_ = on_host(make_device(device, options));
    }

    std::string description() const { return device_->description(); }
    uint64_t parallel_regions() const { return device_->host_pool().regions(); }

    FloatArray linear(const FloatArray& x, PyWeight& weight, const std::optional<FloatArray>& bias) {
        const Tensor in = matrix(x, "linear", "x");
        check(in.cols == weight.weight.cols, "linear", "x has ", in.cols, " columns, the weight takes ", weight.weight.cols);
        FloatArray out = new_matrix(in.rows, weight.weight.rows);
        LinearPart part;
        part.bias = vector_or_null(bias, weight.weight.rows, "linear", "bias");
        part.y = Tensor(out.mutable_data(), in.rows, weight.weight.rows);
        {
            const py::gil_scoped_release release;
            const Weight uploaded = weight.uploaded_to(device_);
            part.weight = &uploaded;
            device_->linear(in, {&part, 1});
        }
        return out;
    }

    std::shared_ptr<PyWeight> round_trip(PyWeight& weight) {
        const py::gil_scoped_release release;
        auto result = std::make_shared<PyWeight>();
        result->weight = device_->download(weight.uploaded_to(device_));
        return result;
    }

    std::shared_ptr<PyWeight> arranged(const PyWeight& weight) {
        const py::gil_scoped_release release;
        auto result = std::make_shared<PyWeight>();
        result->weight = device_->arranged(weight.weight);
        return result;
    }

    size_t uploaded_bytes(PyWeight& weight) {
        const py::gil_scoped_release release;
        return weight.uploaded_to(device_).bytes();
    }

    /// Several parts into the columns of one array, or onto them; for the tests of what a model does.
    void linear_into(const FloatArray& x, const std::vector<std::shared_ptr<PyWeight>>& weights, py::array_t<float>& y,
                     bool accumulate) {
        const Tensor in = matrix(x, "linear_into", "x");
        check(y.ndim() == 2 && y.shape(0) == in.rows && y.writeable() && y.strides(1) == py::ssize_t(sizeof(float)),
              "linear_into", "y must be a writeable float32 matrix with contiguous rows, found shape ", shape_of(y));
        Tensor out(y.mutable_data(), in.rows, y.shape(1), y.strides(0) / py::ssize_t(sizeof(float)));
        int64_t columns = 0;
        for (const auto& weight : weights) {
            check(weight->weight.cols == in.cols, "linear_into", "x has ", in.cols, " columns, a weight takes ",
                  weight->weight.cols);
            columns += weight->weight.rows;
        }
        check(columns == out.cols, "linear_into", "y has ", out.cols, " columns, the weights have ", columns, " rows");
        const py::gil_scoped_release release;
        std::vector<Weight> uploaded;
        std::vector<LinearPart> parts;
        for (const auto& weight : weights) uploaded.push_back(weight->uploaded_to(device_));
        int64_t first = 0;
        for (const Weight& weight : uploaded) {
            parts.push_back({&weight, nullptr, out.columns(first, weight.rows), accumulate});
            first += weight.rows;
        }
        device_->linear(in, parts);
    }

    /// cache: "" to read k and v as an encoder does; "f32", "f16", "bf16", "int8" to put them into a cache of that first.
    FloatArray attention(const FloatArray& q, const FloatArray& k, const FloatArray& v, bool causal,
                         const std::optional<FloatArray>& mask, float scale, int64_t window, float softcap,
                         const std::string& cache) {
        check(q.ndim() == 3 && k.ndim() == 3 && v.ndim() == 3, "attention",
              "q must be [queries, heads, d], k and v [keys, kv_heads, d]");
        AttentionParams params;
        params.heads = q.shape(1), params.kv_heads = k.shape(1), params.head_dim = q.shape(2);
        params.scale = scale, params.causal = causal, params.window = window, params.softcap = softcap;
        const int64_t queries = q.shape(0), keys = k.shape(0);
        check(shape_of(k) == shape_of(v), "attention", "k and v must have the same shape, found ", shape_of(k), " and ",
              shape_of(v));
        check(k.shape(2) == params.head_dim, "attention", "q has heads of ", params.head_dim, ", k of ", k.shape(2));
        check(params.kv_heads > 0 && params.heads % params.kv_heads == 0, "attention", params.heads,
              " query heads are not a multiple of ", params.kv_heads, " key/value heads");
        check(queries <= keys || !(causal || window > 0), "attention", "causal with ", queries, " queries and only ", keys,
              " keys");
        check(window >= 0 && softcap >= 0, "attention", "window and softcap must not be negative");
        KvFormat format{DType::f32, 1, params.kv_heads, params.head_dim};
        if (!cache.empty()) format.dtype = parse_kv_cache(cache);
        if (mask) {
            check(mask->ndim() == 3 && (mask->shape(0) == 1 || mask->shape(0) == params.heads) &&
                      mask->shape(1) == queries && mask->shape(2) == keys,
                  "attention", "mask must be [1 or ", params.heads, ", ", queries, ", ", keys, "], found ", shape_of(*mask));
            params.bias = mask->data();
            params.bias_head_stride = mask->shape(0) == 1 ? 0 : queries * keys;
        }
        FloatArray out(std::vector<py::ssize_t>(q.shape(), q.shape() + 3));
        const int64_t cols = params.heads * params.head_dim, kv_cols = params.kv_heads * params.head_dim;
        const Tensor in(const_cast<float*>(q.data()), queries, cols), result(out.mutable_data(), queries, cols);
        const Tensor k_in(const_cast<float*>(k.data()), keys, kv_cols), v_in(const_cast<float*>(v.data()), keys, kv_cols);
        const Sequence sequence{0, queries, 0, keys};
        const py::gil_scoped_release release;
        if (cache.empty()) {
            KvView k_view, v_view;
            k_view.data = k_in.data, k_view.stride = kv_cols;
            v_view.data = v_in.data, v_view.stride = kv_cols, v_view.role = KvRole::values;
            device_->attention(in, k_view, v_view, {&sequence, 1}, params, result);
        } else {
            const KvCache store(*device_, format, 1, std::max<int64_t>(keys, 1));
            const Sequence whole{0, keys, 0, keys};
            device_->store_kv(k_in, {&whole, 1}, store.keys(0));
            device_->store_kv(v_in, {&whole, 1}, store.values(0));
            device_->attention(in, store.keys(0), store.values(0), {&sequence, 1}, params, result);
        }
        return out;
    }

    FloatArray layer_norm(const FloatArray& x, const FloatArray& gamma, const std::optional<FloatArray>& beta, float eps) {
        const Tensor in = matrix(x, "layer_norm", "x");
        const float* g = vector_or_null(gamma, in.cols, "layer_norm", "gamma");
        const float* b = vector_or_null(beta, in.cols, "layer_norm", "beta");
        FloatArray out = new_matrix(in.rows, in.cols);
        Tensor result(out.mutable_data(), in.rows, in.cols);
        const py::gil_scoped_release release;
        device_->layer_norm(in, g, b, eps, result);
        return out;
    }

    FloatArray rms_norm(const FloatArray& x, const FloatArray& gamma, float eps) {
        const Tensor in = matrix(x, "rms_norm", "x");
        const float* g = vector_or_null(gamma, in.cols, "rms_norm", "gamma");
        FloatArray out = new_matrix(in.rows, in.cols);
        Tensor result(out.mutable_data(), in.rows, in.cols);
        const py::gil_scoped_release release;
        device_->rms_norm(in, g, eps, result);
        return out;
    }

    FloatArray activate(const std::string& name, const FloatArray& x) {
        const Activation activation = activation_named(name);
        FloatArray out = copy_of(x);
        const Tensor rows = rows_of(out);
        const py::gil_scoped_release release;
        device_->activate(activation, rows);
        return out;
    }

    FloatArray gated_activation(const std::string& name, const FloatArray& gate, const FloatArray& up) {
        const Activation activation = activation_named(name);
        check(shape_of(gate) == shape_of(up), "gated_activation", "gate and up must have the same shape, found ",
              shape_of(gate), " and ", shape_of(up));
        FloatArray out = copy_of(gate);
        const Tensor rows = rows_of(out);
        const Tensor factors(const_cast<float*>(up.data()), rows.rows, rows.cols);
        const py::gil_scoped_release release;
        device_->gated_activation(activation, rows, factors);
        return out;
    }

    FloatArray rope(const FloatArray& x, int64_t head_dim, const Array<int32_t>& positions, const FloatArray& frequencies,
                    float magnitude, bool interleaved) {
        const Tensor in = matrix(x, "rope", "x");
        check(head_dim > 0 && in.cols % head_dim == 0, "rope", in.cols, " columns are not whole heads of ", head_dim);
        check(positions.ndim() == 1 && positions.shape(0) == in.rows, "rope", "positions must have shape (", in.rows,
              ",), found ", shape_of(positions));
        check(frequencies.ndim() == 1 && 2 * frequencies.shape(0) <= head_dim, "rope", "at most ", head_dim / 2,
              " frequencies for heads of ", head_dim, ", found shape ", shape_of(frequencies));
        FloatArray out = copy_of(x);
        const Tensor rows(out.mutable_data(), in.rows, in.cols);
        const std::span<const int32_t> at(positions.data(), size_t(positions.size()));
        const std::span<const float> turns(frequencies.data(), size_t(frequencies.size()));
        const py::gil_scoped_release release;
        device_->rope(rows, head_dim, at, turns, magnitude, interleaved ? RopeStyle::interleaved : RopeStyle::half);
        return out;
    }

    FloatArray lora(const FloatArray& x, const std::vector<py::array>& a, const std::vector<py::array>& b,
                    const std::vector<float>& scales, const std::optional<Array<int32_t>>& row_adapter,
                    const FloatArray& y) {
        const Tensor in = matrix(x, "lora", "x"), onto = matrix(y, "lora", "y");
        check(in.rows == onto.rows, "lora", "x has ", in.rows, " rows, y has ", onto.rows);
        const Adapters adapters(*device_, a, b, scales, in.cols, onto.cols, row_adapter, in.rows);
        FloatArray out = copy_of(y);
        const Tensor result(out.mutable_data(), onto.rows, onto.cols);
        const py::gil_scoped_release release;
        device_->adapt(in, adapters.pointers, adapters.rows, nullptr, result);
        return out;
    }

    /// One weight behind a transform of x, with adapters, added to y; and the transformed rows. For tests: `composed` runs what a
    /// device without fused ops runs; `in_place` transforms within x.
    std::pair<FloatArray, FloatArray> fused_linear(const FloatArray& x, PyWeight& weight, const FloatArray& y,
                                                   const std::string& transform, const std::optional<FloatArray>& gamma,
                                                   const std::optional<FloatArray>& beta, float eps,
                                                   const std::string& activation, const std::optional<FloatArray>& up,
                                                   const std::vector<py::array>& a, const std::vector<py::array>& b,
                                                   const std::vector<float>& scales,
                                                   const std::optional<Array<int32_t>>& row_adapter, bool in_place,
                                                   bool composed) {
        constexpr const char* kOp = "fused_linear";
        using Kind = RowTransform::Kind;
        constexpr std::pair<std::string_view, Kind> kNames[] = {{"none", Kind::none},
                                                                {"rms_norm", Kind::rms_norm},
                                                                {"layer_norm", Kind::layer_norm},
                                                                {"activation", Kind::activation},
                                                                {"gated_activation", Kind::gated_activation}};
        const auto* kind =
            std::find_if(std::begin(kNames), std::end(kNames), [&](const auto& n) { return n.first == transform; });
        check(kind != std::end(kNames), kOp, "there is no transform \"", transform, "\"");
        FloatArray rows = copy_of(x), out = copy_of(y);
        FloatArray transformed = in_place ? rows : copy_of(x);
        LinearInput input;
        input.x = matrix(rows, kOp, "x"), input.transformed = matrix(transformed, kOp, "x");
        input.keep = kind->second != Kind::none;
        const int64_t k = input.x.cols, n = weight.weight.rows;
        input.transform.kind = kind->second, input.transform.eps = eps;
        input.transform.gamma = vector_or_null(gamma, k, kOp, "gamma");
        input.transform.beta = vector_or_null(beta, k, kOp, "beta");
        input.transform.activation = activation_named(activation);
        if (up) input.transform.up = matrix(*up, kOp, "up");
        LinearPart part;
        part.y = matrix(out, kOp, "y"), part.accumulate = true;
        check(weight.weight.cols == k && part.y.cols == n && part.y.rows == input.x.rows, kOp, "x is ", shape_of(x),
              ", the weight [", n, ", ", k, "], y ", shape_of(y));
        const Adapters adapters(*device_, a, b, scales, k, n, row_adapter, input.x.rows);
        part.adapters = adapters.pointers, input.adapter_rows = adapters.rows;
        {
            const py::gil_scoped_release release;
            const Weight uploaded = weight.uploaded_to(device_);
            part.weight = &uploaded;
            if (composed)
                device_->Device::fused_linear(input, {&part, 1});
            else
                device_->fused_linear(input, {&part, 1});
        }
        return {out, transformed};
    }

    FloatArray embed(PyWeight& table, const Array<int32_t>& ids) {
        check(ids.ndim() == 1, "embed", "ids must be a vector, found shape ", shape_of(ids));
        for (py::ssize_t i = 0; i < ids.size(); i++)
            check(ids.data()[i] >= 0 && ids.data()[i] < table.weight.rows, "embed", "id ", ids.data()[i],
                  " of a table with ", table.weight.rows, " rows");
        FloatArray out = new_matrix(ids.size(), table.weight.cols);
        const Tensor result(out.mutable_data(), ids.size(), table.weight.cols);
        const std::span<const int32_t> wanted(ids.data(), size_t(ids.size()));
        const py::gil_scoped_release release;
        device_->embed(device_->upload_table(table.weight), wanted, result, false);
        return out;
    }

    FloatArray pool(const FloatArray& x, const std::vector<int64_t>& lengths, const std::string& pooling, bool normalize) {
        const Tensor in = matrix(x, "pool", "x");
        std::vector<Sequence> sequences;
        int64_t row = 0;
        for (const int64_t length : lengths) {
            check(length >= 0 && length <= in.rows - row, "pool", "lengths exceed the ", in.rows, " rows of x");
            sequences.push_back({row, length, 0, length});
            row += length;
        }
        constexpr std::pair<std::string_view, Pooling> kNames[] = {
            {"mean", Pooling::mean}, {"cls", Pooling::cls}, {"max", Pooling::max}, {"last", Pooling::last}};
        const auto* found =
            std::find_if(std::begin(kNames), std::end(kNames), [&](const auto& n) { return n.first == pooling; });
        check(found != std::end(kNames), "pool", "pooling: expected mean, cls, max or last, found \"", pooling, "\"");
        FloatArray out = new_matrix(int64_t(lengths.size()), in.cols);
        const Tensor result(out.mutable_data(), int64_t(lengths.size()), in.cols);
        const py::gil_scoped_release release;
        device_->pool(in, sequences, found->second, normalize, result);
        return out;
    }

private:
    std::shared_ptr<Device> device_;
};

}  // namespace

void bind_ops(py::module_& m) {
    m.def("isas", &instruction_sets);
    m.def("isa", &instruction_set);
    m.def("available_cores", &available_cores);
    m.def("list_devices", [] {
        std::vector<DeviceSummary> devices;
        {
            const py::gil_scoped_release release;
            devices = list_devices();
        }
        py::list out;
        for (const DeviceSummary& device : devices) {
            py::dict entry;
            entry["name"] = device.name;
            entry["description"] = device.description;
            entry["available"] = device.available;
            entry["total_bytes"] = device.total_bytes;
            entry["free_bytes"] = device.free_bytes;
            out.append(entry);
        }
        return out;
    });
    py::class_<Ops>(m, "Ops")
        .def(py::init<const std::string&, int, const std::string&>(), py::arg("device"), py::arg("threads"),
             py::arg("precision"))
        .def_property_readonly("description", &Ops::description)
        .def("linear", &Ops::linear, py::arg("x"), py::arg("weight"), py::arg("bias"))
        .def("linear_into", &Ops::linear_into, py::arg("x"), py::arg("weights"), py::arg("y").noconvert(),
             py::arg("accumulate"))
        .def("round_trip", &Ops::round_trip, py::arg("weight"))
        .def("arranged", &Ops::arranged, py::arg("weight"))
        .def("uploaded_bytes", &Ops::uploaded_bytes, py::arg("weight"))
        .def("attention", &Ops::attention, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("causal"), py::arg("mask"),
             py::arg("scale"), py::arg("window"), py::arg("softcap"), py::arg("cache") = "")
        .def("layer_norm", &Ops::layer_norm, py::arg("x"), py::arg("gamma"), py::arg("beta"), py::arg("eps"))
        .def("rms_norm", &Ops::rms_norm, py::arg("x"), py::arg("gamma"), py::arg("eps"))
        .def("activate", &Ops::activate, py::arg("activation"), py::arg("x"))
        .def("gated_activation", &Ops::gated_activation, py::arg("activation"), py::arg("gate"), py::arg("up"))
        .def("rope", &Ops::rope, py::arg("x"), py::arg("head_dim"), py::arg("positions"), py::arg("frequencies"),
             py::arg("magnitude"), py::arg("interleaved"))
        .def("fused_linear", &Ops::fused_linear, py::arg("x"), py::arg("weight"), py::arg("y"), py::arg("transform"),
             py::arg("gamma"), py::arg("beta"), py::arg("eps"), py::arg("activation"), py::arg("up"), py::arg("a"),
             py::arg("b"), py::arg("scales"), py::arg("row_adapter"), py::arg("in_place"), py::arg("composed"))
        .def_property_readonly("parallel_regions", &Ops::parallel_regions)
        .def("lora", &Ops::lora, py::arg("x"), py::arg("a"), py::arg("b"), py::arg("scales"), py::arg("row_adapter"),
             py::arg("y"))
        .def("embed", &Ops::embed, py::arg("table"), py::arg("ids"))
        .def("pool", &Ops::pool, py::arg("x"), py::arg("lengths"), py::arg("pooling"), py::arg("normalize"));
}

}  // namespace halfbyte::python
