// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/norm_modulate.h"

#include "bindings.h"

namespace skyreels_rt::bindings {
namespace {

void run(uintptr_t x, uintptr_t y, const Table& weight, const Table& bias, int dtype, int64_t batch,
         int64_t length, int64_t width, int64_t stride_batch, int64_t stride_row, float eps,
         int num_threads, const std::string& isa) {
  NormModulateParams p{};
  p.x = pointer<const void>(x);
  p.y = pointer<void>(y);
  p.batch = batch;
  p.length = length;
  p.width = width;
  p.stride_batch = stride_batch;
  p.stride_row = stride_row;
  p.eps = eps;
  p.dtype = cpu_dtype(dtype);
  require(batch >= 0 && length >= 0, "batch, length: expected >= 0");
  require(width >= 1, "width: expected >= 1");
  require(num_threads >= 1, "num_threads: expected >= 1");
  p.weight = segment_table(weight, length, "weight: expected a divisor of length as segments");
  p.bias = segment_table(bias, length, "bias: expected a divisor of length as segments");
  const Isa chosen = parse_isa(isa);
  if (batch == 0 || length == 0) return;
  require(p.x && p.y && p.weight.data && p.bias.data,
          "x, y, weight, bias: expected addresses, got null");
  py::gil_scoped_release release;
  skyreels_rt::norm_modulate(p, chosen, num_threads);
}

}  // namespace

void bind_norm_modulate(py::module_& m) {
  m.def("norm_modulate", &run, py::arg("x"), py::arg("y"), py::arg("weight"), py::arg("bias"),
        py::arg("dtype"), py::arg("batch"), py::arg("length"), py::arg("width"),
        py::arg("stride_batch"), py::arg("stride_row"), py::arg("eps"), py::arg("num_threads"),
        py::arg("isa") = "");
}

}  // namespace skyreels_rt::bindings
