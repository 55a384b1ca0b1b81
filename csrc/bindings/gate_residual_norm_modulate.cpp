// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/gate_residual_norm_modulate.h"

#include "bindings.h"

namespace skyreels_rt::bindings {
namespace {

void run(uintptr_t x, uintptr_t y, uintptr_t normed, const Table& gate, const Table& weight,
         const Table& bias, int dtype, int64_t batch, int64_t length, int64_t width,
         int64_t x_stride_batch, int64_t x_stride_row, int64_t y_stride_batch, int64_t y_stride_row,
         float eps, int num_threads, const std::string& isa) {
  GateResidualNormModulateParams p{};
  p.x = pointer<void>(x);
  p.y = pointer<const void>(y);
  p.normed = pointer<void>(normed);
  p.batch = batch;
  p.length = length;
  p.width = width;
  p.x_stride_batch = x_stride_batch;
  p.x_stride_row = x_stride_row;
  p.y_stride_batch = y_stride_batch;
  p.y_stride_row = y_stride_row;
  p.eps = eps;
  p.dtype = cpu_dtype(dtype);
  require(batch >= 0 && length >= 0, "batch, length: expected >= 0");
  require(width >= 1, "width: expected >= 1");
  require(num_threads >= 1, "num_threads: expected >= 1");
  p.gate = segment_table(gate, length, "gate: expected a divisor of length as segments");
  p.weight = segment_table(weight, length, "weight: expected a divisor of length as segments");
  p.bias = segment_table(bias, length, "bias: expected a divisor of length as segments");
  const Isa chosen = parse_isa(isa);
  if (batch == 0 || length == 0) return;
  require(p.x && p.y && p.normed && p.weight.data && p.bias.data,
          "x, y, normed, weight, bias: expected addresses, got null");
  py::gil_scoped_release release;
  skyreels_rt::gate_residual_norm_modulate(p, chosen, num_threads);
}

}  // namespace

void bind_gate_residual_norm_modulate(py::module_& m) {
  m.def("gate_residual_norm_modulate", &run, py::arg("x"), py::arg("y"), py::arg("normed"),
        py::arg("gate"), py::arg("weight"), py::arg("bias"), py::arg("dtype"), py::arg("batch"),
        py::arg("length"), py::arg("width"), py::arg("x_stride_batch"), py::arg("x_stride_row"),
        py::arg("y_stride_batch"), py::arg("y_stride_row"), py::arg("eps"), py::arg("num_threads"),
        py::arg("isa") = "");
}

}  // namespace skyreels_rt::bindings
