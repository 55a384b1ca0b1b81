// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/audio_cross_attention.h"

#include <pybind11/stl.h>

#include <array>

#include "bindings.h"

namespace skyreels_rt::bindings {
namespace {

// Sizes (B, F, P, M, N, K); strides of q (batch, row), of k and v (batch, frame, row each), of the
// mask (batch, frame).
void run(uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t out, uintptr_t ranges,
         uintptr_t token_mask, uintptr_t gate, uintptr_t norm_weight, int dtype,
         const std::array<int64_t, 6>& sizes, const std::array<int64_t, 10>& strides, float eps,
         int num_threads, const std::string& isa) {
  AudioCrossAttentionParams p{};
  p.q = pointer<const void>(q);
  p.k = pointer<const void>(k);
  p.v = pointer<const void>(v);
  p.out = pointer<void>(out);
  p.ranges = pointer<const int32_t>(ranges);
  p.token_mask = pointer<const uint8_t>(token_mask);
  p.gate = pointer<const float>(gate);
  p.norm_weight = pointer<const float>(norm_weight);
  set_layout(p, sizes.data(), strides.data());
  p.eps = eps;
  p.dtype = cpu_dtype(dtype);
  require(p.batch >= 0 && p.frames >= 0 && p.patches >= 0, "batch, frames, patches: expected >= 0");
  require(p.tokens >= 1 && p.num_heads >= 1 && p.head_dim >= 1,
          "tokens, num_heads, head_dim: expected >= 1");
  require(num_threads >= 1, "num_threads: expected >= 1");
  const Isa chosen = parse_isa(isa);
  if (p.batch == 0 || p.frames == 0 || p.patches == 0) return;
  require(p.q && p.k && p.v && p.out, "q, k, v, out: expected addresses, got null");
  py::gil_scoped_release release;
  skyreels_rt::audio_cross_attention(p, chosen, num_threads);
}

}  // namespace

void bind_audio_cross_attention(py::module_& m) {
  m.def("audio_cross_attention", &run, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"),
        py::arg("ranges"), py::arg("token_mask"), py::arg("gate"), py::arg("norm_weight"),
        py::arg("dtype"), py::arg("sizes"), py::arg("strides"), py::arg("eps"),
        py::arg("num_threads"), py::arg("isa") = "");
}

}  // namespace skyreels_rt::bindings
