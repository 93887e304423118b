#include "bindings/python.h"
#include "device/probe.h"

namespace halfbyte::python {

void bind_bench(py::module_& m) {
    m.def(
        "read_bandwidth",
        [](int threads, double seconds) {
            const py::gil_scoped_release release;
            return read_bandwidth_gb_per_s({threads, seconds});
        },
        py::arg("threads") = 0, py::arg("seconds") = 0.3);
    m.def(
        "peak_gflops",
        [](int threads, double seconds, const std::string& arithmetic) {
            const Arithmetic kind = parse_arithmetic(arithmetic);
            const py::gil_scoped_release release;
            return peak_gflops(kind, {threads, seconds});
        },
        py::arg("threads") = 0, py::arg("seconds") = 0.3, py::arg("arithmetic") = "float32");
}

}  // namespace halfbyte::python
