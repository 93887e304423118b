#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "bindings/python.h"
#include "core/error.h"
#include "core/thread_pool.h"
#include "device/device.h"
#include "io/ggml_types.h"
#include "io/gguf_weights.h"
#include "storage/encode.h"
#include "storage/storage.h"

namespace halfbyte::python {

namespace {

// For encoding and decoding. Never destroyed: at exit no thread may be joined while the interpreter goes away.
ThreadPool& shared_pool() {
    static auto* pool = new ThreadPool(0);
    return *pool;
}

std::shared_ptr<PyWeight> wrap(Weight weight) {
    auto result = std::make_shared<PyWeight>();
    result->weight = std::move(weight);
    return result;
}

bool is_bnb4(const Weight& weight) { return weight.storage == &nf4_storage() || weight.storage == &fp4_storage(); }

/// The bytes of a plane as a new one-dimensional array of T.
template <class T>
py::array_t<T> copy_of(const Plane& plane) {
    py::array_t<T> array(py::ssize_t(plane.bytes / sizeof(T)));
    if (plane.bytes > 0) std::memcpy(array.mutable_data(), plane.data, plane.bytes);
    return array;
}

py::dict planes_of(const Weight& weight) {
    if (is_bnb4_panels(weight)) return planes_of(bnb4_from_panels(weight));
    py::dict planes;
    if (weight.storage == &int8_rows_storage()) {
        planes["levels"] = copy_of<int8_t>(weight.planes[kInt8RowsLevels]);
        planes["SCB"] = copy_of<float>(weight.planes[kInt8RowsScb]);
        return planes;
    }
    if (weight.storage == &int8_storage()) {
        planes["levels"] = copy_of<int8_t>(weight.planes[kInt8Levels]);
        planes["scales"] = copy_of<float>(weight.planes[kInt8Scales]);
        return planes;
    }
    if (!is_bnb4(weight)) {
        for (size_t i = 1; i < weight.planes.size(); i++) {
            if (weight.planes[i])
                fail(ErrorCode::unsupported, "planes: ", weight.storage->name(), " has more than one plane");
        }
        planes["data"] = copy_of<uint8_t>(weight.planes[0]);
        return planes;
    }
    planes["codes"] = copy_of<uint8_t>(weight.planes[kBnb4Codes]);
    planes["quant_map"] = copy_of<float>(weight.planes[kBnb4Map]);
    if (weight.nested_block_size == 0) {
        planes["absmax"] = copy_of<float>(weight.planes[kBnb4Absmax]);
    } else {
        planes["absmax"] = copy_of<uint8_t>(weight.planes[kBnb4Absmax]);
        planes["nested_absmax"] = copy_of<float>(weight.planes[kBnb4NestedAbsmax]);
        planes["nested_quant_map"] = copy_of<float>(weight.planes[kBnb4NestedMap]);
        planes["nested_offset"] = py::float_(double(weight.nested_offset));
    }
    return planes;
}

/// planes[key], which must hold exactly the dtype T, as a plane that owns a copy.
template <class T>
Plane plane_from(const py::dict& planes, const char* key) {
    if (!planes.contains(key)) fail(ErrorCode::invalid_argument, "weight_from_planes: \"", key, "\" is missing");
    const py::object value = planes[key];
    if (!py::isinstance<py::array_t<T>>(value)) {
        fail(ErrorCode::invalid_argument, "weight_from_planes: \"", key, "\" must be a numpy array of ",
             std::string(py::str(py::object(py::dtype::of<T>()))));
    }
    const auto array = Array<T>::ensure(value);
    if (!array) throw py::error_already_set();
    Plane plane = allocate_plane(size_t(array.nbytes()));
    if (plane.bytes > 0) std::memcpy(const_cast<void*>(plane.data), array.data(), plane.bytes);
    return plane;
}

const Storage* storage_named(const std::string& format) {
    std::vector<const Storage*> all = {&nf4_storage(), &fp4_storage(), &int8_rows_storage(), &int8_storage()};
    for (const GgmlType& type : ggml_types())
        if (type.storage != nullptr) all.push_back(type.storage());
    std::string known;
    for (const Storage* storage : all) {
        if (storage->name() == format) return storage;
        known.append(known.empty() ? "" : ", ").append(storage->name());
    }
    fail(ErrorCode::invalid_argument, "weight_from_planes: unknown format \"", format, "\"; expected one of ", known);
}

std::shared_ptr<PyWeight> weight_from_planes(const std::string& format, int64_t rows, int64_t cols, int block_size,
                                             const py::dict& planes) {
    Weight weight;
    weight.rows = rows;
    weight.cols = cols;
    weight.storage = storage_named(format);
    weight.block_size = block_size;
    if (is_bnb4(weight)) {
        weight.planes[kBnb4Codes] = plane_from<uint8_t>(planes, "codes");
        weight.planes[kBnb4Map] = plane_from<float>(planes, "quant_map");
        if (planes.contains("nested_absmax")) {
            weight.nested_block_size = 256;
            weight.planes[kBnb4Absmax] = plane_from<uint8_t>(planes, "absmax");
            weight.planes[kBnb4NestedAbsmax] = plane_from<float>(planes, "nested_absmax");
            weight.planes[kBnb4NestedMap] = plane_from<float>(planes, "nested_quant_map");
            if (!planes.contains("nested_offset")) {
                fail(ErrorCode::invalid_argument, "weight_from_planes: \"nested_offset\" is missing");
            }
            weight.nested_offset = float(py::cast<double>(planes["nested_offset"]));
        } else {
            weight.planes[kBnb4Absmax] = plane_from<float>(planes, "absmax");
        }
    } else if (weight.storage == &int8_rows_storage()) {
        weight.planes[kInt8RowsLevels] = plane_from<int8_t>(planes, "levels");
        weight.planes[kInt8RowsScb] = plane_from<float>(planes, "SCB");
    } else if (weight.storage == &int8_storage()) {
        weight.planes[kInt8Levels] = plane_from<int8_t>(planes, "levels");
        weight.planes[kInt8Scales] = plane_from<float>(planes, "scales");
    } else {
        weight.planes[0] = plane_from<uint8_t>(planes, "data");
        if (weight.storage->block_size() == 0) weight.block_size = 0;  // floats
    }
    weight.storage->validate(weight, "weight_from_planes");
    return wrap(std::move(weight));
}

std::shared_ptr<PyWeight> quantize(const Array<float>& values, const std::string& format, int block_size,
                                   bool double_quant) {
    if (values.ndim() != 2) {
        fail(ErrorCode::invalid_argument, "quantize: expected a matrix [out, in], found ", values.ndim(), " dimensions");
    }
    const EncodeOptions options{format, block_size, double_quant};
    const float* data = values.data();
    const int64_t rows = values.shape(0);
    const int64_t cols = values.shape(1);
    Weight weight;
    {
        const py::gil_scoped_release release;
        weight = encode(data, rows, cols, options, shared_pool());
    }
    return wrap(std::move(weight));
}

std::shared_ptr<PyWeight> made(const PyWeight& self, const std::function<Weight(const Weight&)>& make) {
    auto result = std::make_shared<PyWeight>();
    const py::gil_scoped_release release;
    result->weight = make(self.weight);
    return result;
}

/// The planes as files hold them: [(end of the tensor's name, "I8" or "F32", bytes without a copy)]; one without a name for a
/// storage of one plane.
py::list file_parts(const std::shared_ptr<PyWeight>& self) {
    const Weight& weight = self->weight;
    const auto view = [&](const Plane& plane) {
        py::array_t<uint8_t> array({py::ssize_t(plane.bytes)}, {py::ssize_t(1)}, plane.as<uint8_t>(), py::cast(self));
        array.attr("flags").attr("writeable") = false;
        return array;
    };
    py::list list;
    const Storage* storage = nullptr;
    const auto parts = combined_parts(std::string(weight.storage->name()), weight.nested_block_size != 0, storage);
    for (const CombinedPart& part : parts)
        list.append(py::make_tuple(part.suffix, part.type == 0 ? "F32" : "I8", view(weight.planes[size_t(part.plane)])));
    if (parts.empty()) list.append(py::make_tuple("", "", view(weight.planes[0])));
    return list;
}

py::array_t<float> dequantize(const PyWeight& self) {
    const Weight& weight = self.weight;
    py::array_t<float> out({weight.rows, weight.cols});
    if (weight.size() == 0) return out;  // rows of nothing may be 2^59
    float* data = out.mutable_data();
    {
        const py::gil_scoped_release release;
        const int64_t grain = 65536 / std::max<int64_t>(weight.cols, 1) + 1;
        shared_pool().parallel_for(weight.rows, grain, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; row++) weight.storage->decode_row(weight, row, data + row * weight.cols);
        });
    }
    return out;
}

}  // namespace

void bind_storage(py::module_& m) {
    py::class_<PyWeight, std::shared_ptr<PyWeight>>(m, "Weight",
                                                    "A matrix [out, in] in the storage it was made with. Immutable.")
        .def_property_readonly("shape", [](const PyWeight& w) { return py::make_tuple(w.weight.rows, w.weight.cols); })
        .def_property_readonly("format", [](const PyWeight& w) { return std::string(w.weight.storage->name()); })
        .def_property_readonly("block_size", [](const PyWeight& w) { return w.weight.block_size; })
        .def_property_readonly("nbytes", [](const PyWeight& w) { return w.weight.bytes(); })
        .def(
            "uploaded_bytes", [](const PyWeight& w, const std::string& device) { return uploaded_bytes(device, w.weight); },
            py::arg("device"))
        .def_property_readonly("bits_per_weight", [](const PyWeight& w) { return w.weight.bits_per_weight(); })
        .def("dequantize", &dequantize)
        .def_property_readonly("nested_block_size", [](const PyWeight& w) { return w.weight.nested_block_size; })
        .def_property_readonly("nested_offset", [](const PyWeight& w) { return w.weight.nested_offset; })
        .def("file_parts", &file_parts)
        .def(
            "encoded",
            [](const PyWeight& w, const std::string& format, int block_size, bool double_quant) {
                return made(w, [&](const Weight& weight) {
                    return encode(weight, {format, block_size, double_quant}, shared_pool());
                });
            },
            py::arg("format"), py::arg("block_size"), py::arg("double_quant"))
        .def(
            "reordered",
            [](const PyWeight& w, const std::vector<int64_t>& order) {
                std::vector<bool> seen(size_t(w.weight.rows));
                for (const int64_t row : order) {
                    if (row < 0 || row >= w.weight.rows || seen[size_t(row)])
                        fail(ErrorCode::invalid_argument, "reordered: expected every row of ", w.weight.rows, " once");
                    seen[size_t(row)] = true;
                }
                if (int64_t(order.size()) != w.weight.rows)
                    fail(ErrorCode::invalid_argument, "reordered: ", order.size(), " rows of ", w.weight.rows);
                return made(w, [&](const Weight& weight) { return reorder_rows(weight, order); });
            },
            py::arg("order"))
        .def("transposed",
             [](const PyWeight& w) {
                 if (w.weight.storage->kind() != StorageKind::floating)
                     fail(ErrorCode::invalid_argument, "transposed: expected floats, found ", w.weight.storage->name());
                 return made(w, [&](const Weight& weight) { return transposed(weight, shared_pool()); });
             })
        .def("planes", [](const PyWeight& w) { return planes_of(w.weight); })
        .def("__repr__", [](const PyWeight& w) {
            return concat("<halfbyte.Weight ", w.weight.storage->name(), " [", w.weight.rows, ", ", w.weight.cols, "]>");
        });
    m.def("int8_block", &int8_block, py::arg("cols"));
    m.def("quantize", &quantize, py::arg("weight"), py::arg("format"), py::arg("block_size"), py::arg("double_quant"));
    m.def("weight_from_planes", &weight_from_planes, py::arg("format"), py::arg("rows"), py::arg("cols"),
          py::arg("block_size"), py::arg("planes"));
}

}  // namespace halfbyte::python
