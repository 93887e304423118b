#include "bindings/python.h"

namespace halfbyte::python {

void bind_ops(py::module_& m) { (void)m; }

}  // namespace halfbyte::python
