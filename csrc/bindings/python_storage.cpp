#include "bindings/python.h"

namespace halfbyte::python {

void bind_storage(py::module_& m) { (void)m; }

}  // namespace halfbyte::python
