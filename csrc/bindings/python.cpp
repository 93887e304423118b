#include "bindings/python.h"

#include <array>
#include <new>

#include "core/error.h"

namespace halfbyte::python {

namespace {

struct Mapping {
    ErrorCode code;
    const char* name;
    const char* builtin;  // second base, so that `except ValueError` works too
};
constexpr std::array kMappings{
    Mapping{ErrorCode::invalid_argument, "InvalidArgumentError", "ValueError"},
    Mapping{ErrorCode::not_found, "NotFoundError", "LookupError"},
    Mapping{ErrorCode::corrupt, "CorruptFileError", "ValueError"},
    Mapping{ErrorCode::unsupported, "UnsupportedError", "NotImplementedError"},
    Mapping{ErrorCode::out_of_memory, "OutOfMemoryError", "MemoryError"},
    Mapping{ErrorCode::io, "InputOutputError", "OSError"},
    Mapping{ErrorCode::cancelled, "CancelledError", nullptr},
    Mapping{ErrorCode::internal, "InternalError", "RuntimeError"},
};

// Exception classes live as long as the interpreter; leaked on purpose, as pybind11 advises for module globals.
std::array<PyObject*, kMappings.size()>& classes() {
    static auto* list = new std::array<PyObject*, kMappings.size()>{};
    return *list;
}

}  // namespace

void bind_errors(py::module_& m) {
    PyObject* base =
        PyErr_NewExceptionWithDoc("halfbyte.Error", "Base of every error that halfbyte raises.", nullptr, nullptr);
    m.attr("Error") = py::reinterpret_borrow<py::object>(base);
    const py::module_ builtins = py::module_::import("builtins");
    for (size_t i = 0; i < kMappings.size(); i++) {
        py::tuple bases = py::make_tuple(py::reinterpret_borrow<py::object>(base));
        if (kMappings[i].builtin != nullptr) bases = py::make_tuple(bases[0], builtins.attr(kMappings[i].builtin));
        const std::string qualified = concat("halfbyte.", kMappings[i].name);
        classes()[i] = PyErr_NewException(qualified.c_str(), bases.ptr(), nullptr);
        m.attr(kMappings[i].name) = py::reinterpret_borrow<py::object>(classes()[i]);
    }
    py::register_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) std::rethrow_exception(pointer);
        } catch (const Error& error) {
            PyObject* type = PyExc_RuntimeError;
            for (size_t i = 0; i < kMappings.size(); i++)
                if (kMappings[i].code == error.code()) type = classes()[i];
            // A path or a name in the text may be cut or may not be UTF-8.
            const py::object text = py::reinterpret_steal<py::object>(
                PyUnicode_DecodeUTF8(error.what(), Py_ssize_t(error.message().size()), "replace"));
            PyErr_SetObject(type, text.ptr());
        }
    });
}

}  // namespace halfbyte::python

PYBIND11_MODULE(_core, m) {
    using namespace halfbyte::python;
    m.attr("__version__") = HALFBYTE_VERSION;
    bind_errors(m);
    bind_storage(m);
    bind_checkpoint(m);
    bind_ops(m);
    bind_engine(m);
    bind_bench(m);
}
