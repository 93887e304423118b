#include <cstring>
#include <string>

#include "bindings/python.h"
#include "core/error.h"
#include "device/device.h"
#include "io/checkpoint.h"
#include "io/gguf.h"
#include "models/loader.h"

namespace halfbyte::python {

namespace {

/// A value of fixed size as a numpy array of `count` elements; the file may hold them at any address.
template <class T>
py::array array_of(const GgufValue& value) {
    py::array_t<T> array{py::ssize_t(value.count)};
    if (value.count > 0) std::memcpy(array.mutable_data(), value.data, size_t(value.count) * sizeof(T));
    return array;
}

py::array array_of(GgufType element, const GgufValue& value) {
    switch (element) {
        case GgufType::u8: return array_of<uint8_t>(value);
        case GgufType::i8: return array_of<int8_t>(value);
        case GgufType::u16: return array_of<uint16_t>(value);
        case GgufType::i16: return array_of<int16_t>(value);
        case GgufType::u32: return array_of<uint32_t>(value);
        case GgufType::i32: return array_of<int32_t>(value);
        case GgufType::f32: return array_of<float>(value);
        case GgufType::boolean: return array_of<bool>(value);
        case GgufType::u64: return array_of<uint64_t>(value);
        case GgufType::i64: return array_of<int64_t>(value);
        case GgufType::f64: return array_of<double>(value);
        case GgufType::string:
        case GgufType::array: break;
    }
    fail(ErrorCode::internal, "metadata: not an array of numbers");
}

py::object to_python(const GgufValue& value, std::string_view key) {
    if (value.type == GgufType::string) {
        PyObject* text = PyUnicode_DecodeUTF8(value.text().data(), py::ssize_t(value.count), nullptr);
        if (text == nullptr) {
            PyErr_Clear();
            fail(ErrorCode::corrupt, "the metadata value ", key, " is not UTF-8 text");
        }
        return py::reinterpret_steal<py::object>(text);
    }
    if (value.type != GgufType::array) return array_of(value.type, value).attr("item")(0);
    if (value.element != GgufType::string) return array_of(value.element, value);
    py::list list(py::ssize_t(value.count));
    size_t i = 0;
    for (const std::string_view text : value.texts()) list[i++] = py::bytes(text.data(), text.size());
    return list;
}

py::object metadata(const Checkpoint& self, const std::string& key) {
    const auto* gguf = dynamic_cast<const GgufCheckpoint*>(&self);
    const GgufValue* value = gguf == nullptr ? nullptr : gguf->file().find(key);
    if (value == nullptr) return py::none();
    return to_python(*value, key);
}

/// The architecture, and what it does with each tensor, as tuples; see PlannedTensor.
py::tuple plan(const Checkpoint& self) {
    std::vector<PlannedTensor> tensors;
    std::string architecture;
    {
        const py::gil_scoped_release release;
        const auto device = make_device("cpu", {1, Precision::float32});
        LoadOptions options;
        options.plan = &tensors;
        architecture = load_model(self, *device, options)->info().architecture;
    }
    static constexpr const char* kRoles[] = {"linear", "output", "embedding", "vector"};
    py::list list;
    for (const PlannedTensor& t : tensors)
        list.append(
            py::make_tuple(t.tensor, t.hf, t.gguf, kRoles[size_t(t.role)], t.rows, t.cols, t.transposed, t.row_order));
    return py::make_tuple(architecture, list);
}

}  // namespace

void bind_checkpoint(py::module_& m) {
    py::class_<Checkpoint>(m, "Checkpoint", "An open checkpoint: a folder, a .safetensors file or a .gguf file.")
        .def(py::init([](const std::string& path) {
                 const py::gil_scoped_release release;
                 return Checkpoint::open(path);
             }),
             py::arg("path"))
        .def_property_readonly("format", [](const Checkpoint& c) { return std::string(c.format()); })
        .def_property_readonly("architecture", [](const Checkpoint& c) { return c.config().architecture(); })
        .def_property_readonly("model_type", [](const Checkpoint& c) { return c.config().model_type(); })
        .def("names", [](const Checkpoint& c) { return c.names(); })
        .def(
            "shape", [](const Checkpoint& c, const std::string& name) { return c.shape(name); }, py::arg("name"))
        .def(
            "weight",
            [](const Checkpoint& c, const std::string& name) {
                auto result = std::make_shared<PyWeight>();
                result->weight = c.weight(name);
                return result;
            },
            py::arg("name"))
        .def("plan", &plan)
        .def_property_readonly("has_reference_rows", [](const Checkpoint& c) { return c.has_reference_rows(); })
        .def("metadata", &metadata, py::arg("key"))
        .def("metadata_json", [](const Checkpoint& c) { return c.metadata_json(); });
}

}  // namespace halfbyte::python
