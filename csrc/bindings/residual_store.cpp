// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/residual_store.h"

#include "bindings.h"

namespace skyreels_rt::bindings {
namespace {

void run(uintptr_t before, uintptr_t after, uintptr_t out, int dtype, int64_t count,
         int num_threads, const std::string& isa) {
  const ResidualStoreParams p{pointer<const void>(before), pointer<const void>(after),
                              pointer<void>(out), count, cpu_dtype(dtype)};
  require(count >= 0, "count: expected >= 0");
  require(num_threads >= 1, "num_threads: expected >= 1");
  const Isa chosen = parse_isa(isa);
  if (count == 0) return;
  require(p.before != nullptr && p.after != nullptr && p.out != nullptr,
          "before, after, out: expected addresses, got null");
  py::gil_scoped_release release;
  skyreels_rt::residual_store(p, chosen, num_threads);
}

}  // namespace

void bind_residual_store(py::module_& m) {
  m.def("residual_store", &run, py::arg("before"), py::arg("after"), py::arg("out"),
        py::arg("dtype"), py::arg("count"), py::arg("num_threads"), py::arg("isa") = "");
}

}  // namespace skyreels_rt::bindings
