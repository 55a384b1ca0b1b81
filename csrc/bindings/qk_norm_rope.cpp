// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/qk_norm_rope.h"

#include "bindings.h"

namespace skyreels_rt::bindings {
namespace {

void run(uintptr_t q, uintptr_t k, uintptr_t weight_q, uintptr_t weight_k, uintptr_t cos,
         uintptr_t sin, int dtype, int64_t batch, int64_t length, int64_t num_heads,
         int64_t head_dim, int64_t q_stride_batch, int64_t q_stride_row, int64_t k_stride_batch,
         int64_t k_stride_row, float eps, int num_threads, const std::string& isa) {
  QkNormRopeParams p{};
  p.q = pointer<void>(q);
  p.k = pointer<void>(k);
  p.weight_q = pointer<const float>(weight_q);
  p.weight_k = pointer<const float>(weight_k);
  p.cos = pointer<const float>(cos);
  p.sin = pointer<const float>(sin);
  p.batch = batch;
  p.length = length;
  p.num_heads = num_heads;
  p.head_dim = head_dim;
  p.q_stride_batch = q_stride_batch;
  p.q_stride_row = q_stride_row;
  p.k_stride_batch = k_stride_batch;
  p.k_stride_row = k_stride_row;
  p.eps = eps;
  p.dtype = cpu_dtype(dtype);
  require(batch >= 0 && length >= 0, "batch, length: expected >= 0");
  require(num_heads >= 1, "num_heads: expected >= 1");
  require(head_dim >= 2 && head_dim % 2 == 0, "head_dim: expected an even number >= 2");
  require(num_threads >= 1, "num_threads: expected >= 1");
  const Isa chosen = parse_isa(isa);
  if (batch == 0 || length == 0) return;
  require(p.q && p.k && p.weight_q && p.weight_k && p.cos && p.sin,
          "q, k, weight_q, weight_k, cos, sin: expected addresses, got null");
  py::gil_scoped_release release;
  skyreels_rt::qk_norm_rope(p, chosen, num_threads);
}

}  // namespace

void bind_qk_norm_rope(py::module_& m) {
  m.def("qk_norm_rope", &run, py::arg("q"), py::arg("k"), py::arg("weight_q"), py::arg("weight_k"),
        py::arg("cos"), py::arg("sin"), py::arg("dtype"), py::arg("batch"), py::arg("length"),
        py::arg("num_heads"), py::arg("head_dim"), py::arg("q_stride_batch"),
        py::arg("q_stride_row"), py::arg("k_stride_batch"), py::arg("k_stride_row"), py::arg("eps"),
        py::arg("num_threads"), py::arg("isa") = "");
}

}  // namespace skyreels_rt::bindings
