#include "bindings/python.h"

namespace halfbyte::python {

void bind_engine(py::module_& m) { (void)m; }

}  // namespace halfbyte::python
