// The parts of the extension module. Each file binds one room: it converts arguments, calls the core, and holds no logic.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "core/weight.h"
#include "device/device.h"

namespace halfbyte::python {

namespace py = pybind11;

/// C-contiguous numpy array of T; converts silently from other dtypes and layouts (a copy).
template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

/// What Python calls halfbyte.Weight.
struct PyWeight {
    Weight weight;

    /// The weight in the layout of `device`, made on first use and kept for as long as the device lives. Thread-safe.
    Weight uploaded_to(const std::shared_ptr<Device>& device);

private:
    std::mutex mutex_;
    std::vector<std::pair<std::weak_ptr<Device>, Weight>> uploads_;
};

void bind_errors(py::module_& m);      // python.cpp: maps halfbyte::Error to the exception classes of _core.pyi
void bind_storage(py::module_& m);     // python_storage.cpp: Weight, quantize, weight_from_planes
void bind_checkpoint(py::module_& m);  // python_checkpoint.cpp: Checkpoint
void bind_ops(py::module_& m);         // python_ops.cpp: isa, isas, available_cores, Ops
void bind_engine(py::module_& m);      // python_engine.cpp: architectures, Engine, Generation
void bind_bench(py::module_& m);       // python_bench.cpp: read_bandwidth, peak_gflops

}  // namespace halfbyte::python
