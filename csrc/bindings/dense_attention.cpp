// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/dense_attention.h"

#include <pybind11/stl.h>

#include <array>

#include "bindings.h"

namespace skyreels_rt::bindings {
namespace {

HeadStrides head_strides(const std::array<int64_t, 3>& s) { return {s[0], s[1], s[2]}; }

// Sizes (B, N, L, S, K); strides (batch, head, row) of each tensor.
void run(uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t out, uintptr_t maxima,
         uintptr_t exponentials, int dtype, const std::array<int64_t, 5>& sizes,
         const std::array<std::array<int64_t, 3>, 4>& strides, int num_threads,
         const std::string& isa) {
  DenseAttentionParams p{};
  p.q = pointer<const void>(q);
  p.k = pointer<const void>(k);
  p.v = pointer<const void>(v);
  p.out = pointer<void>(out);
  p.maxima = pointer<float>(maxima);
  p.exponentials = pointer<float>(exponentials);
  p.batch = sizes[0];
  p.heads = sizes[1];
  p.queries = sizes[2];
  p.keys = sizes[3];
  p.head_dim = sizes[4];
  p.q_strides = head_strides(strides[0]);
  p.k_strides = head_strides(strides[1]);
  p.v_strides = head_strides(strides[2]);
  p.out_strides = head_strides(strides[3]);
  p.dtype = cpu_dtype(dtype);
  require(p.batch >= 0 && p.heads >= 0 && p.queries >= 0, "batch, heads, queries: expected >= 0");
  require(p.keys >= 1 && p.head_dim >= 1, "keys, head_dim: expected >= 1");
  require(!p.maxima == !p.exponentials, "maxima, exponentials: expected both or neither");
  require(num_threads >= 1, "num_threads: expected >= 1");
  const Isa chosen = parse_isa(isa);
  if (p.batch == 0 || p.heads == 0 || p.queries == 0) return;
  require(p.q && p.k && p.v && p.out, "q, k, v, out: expected addresses, got null");
  py::gil_scoped_release release;
  skyreels_rt::dense_attention(p, chosen, num_threads);
}

}  // namespace

void bind_dense_attention(py::module_& m) {
  m.def("dense_attention", &run, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"),
        py::arg("maxima"), py::arg("exponentials"), py::arg("dtype"), py::arg("sizes"),
        py::arg("strides"), py::arg("num_threads"), py::arg("isa") = "");
}

}  // namespace skyreels_rt::bindings
