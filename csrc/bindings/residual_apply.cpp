// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/residual_apply.h"

#include "bindings.h"

namespace skyreels_rt::bindings {
namespace {

void run(uintptr_t x, uintptr_t residual, int dtype, int64_t count, int num_threads,
         const std::string& isa) {
  const ResidualApplyParams p{pointer<void>(x), pointer<const void>(residual), count,
                              cpu_dtype(dtype)};
  require(count >= 0, "count: expected >= 0");
  require(num_threads >= 1, "num_threads: expected >= 1");
  const Isa chosen = parse_isa(isa);
  if (count == 0) return;
  require(p.x != nullptr && p.residual != nullptr, "x, residual: expected addresses, got null");
  py::gil_scoped_release release;
  skyreels_rt::residual_apply(p, chosen, num_threads);
}

}  // namespace

void bind_residual_apply(py::module_& m) {
  m.def("residual_apply", &run, py::arg("x"), py::arg("residual"), py::arg("dtype"),
        py::arg("count"), py::arg("num_threads"), py::arg("isa") = "");
}

}  // namespace skyreels_rt::bindings
