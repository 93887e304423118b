#include "bindings/python.h"

namespace halfbyte::python {

void bind_checkpoint(py::module_& m) { (void)m; }

}  // namespace halfbyte::python
