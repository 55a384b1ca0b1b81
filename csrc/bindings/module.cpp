// SPDX-License-Identifier: Apache-2.0
// The Python face of the CPU operators, skyreels_rt._C.
#include <pybind11/stl.h>

#include <vector>

#include "bindings.h"
#include "skyreels_rt/pages.h"

namespace skyreels_rt::bindings {

DType cpu_dtype(int code) {
  require(code == 0 || code == 1, "dtype: expected 0 (float32) or 1 (bfloat16)");
  return static_cast<DType>(code);
}

Isa parse_isa(const std::string& name) {
  if (name.empty()) return best_isa();
  for (int i = 0; i < kIsaCount; ++i) {
    if (name == kIsaNames[i]) return static_cast<Isa>(i);
  }
  throw std::invalid_argument(
      "isa: expected '', 'plain', 'avx2', 'avx512' or 'avx512_bf16', got '" + name + "'");
}

SegmentTable segment_table(const Table& table, int64_t length, const char* what) {
  const auto [address, segments, stride_batch, stride_segment] = table;
  require(segments >= 1 && length % segments == 0, what);
  return {pointer<const float>(address), stride_batch, stride_segment, length / segments};
}

namespace {

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (int i = 0; i < kIsaCount; ++i) {
    if (isa_available(static_cast<Isa>(i))) names.emplace_back(kIsaNames[i]);
  }
  return names;
}

}  // namespace
}  // namespace skyreels_rt::bindings

PYBIND11_MODULE(_C, m) {
  using namespace skyreels_rt;
  m.doc() = "CPU operators of skyreels_rt (csrc/). No torch, no CUDA.";
  m.attr("ABI_VERSION") = kAbiVersion;
  m.def("isa", [] { return bindings::kIsaNames[static_cast<int>(best_isa())]; });
  m.def("available_isas", &bindings::available_isas);
  m.def(
      "prefer_huge_pages",
      [](uintptr_t address, int64_t size) {
        bindings::require(size >= 0, "size: expected >= 0");
        prefer_huge_pages(bindings::pointer<void>(address), size);
      },
      pybind11::arg("address"), pybind11::arg("size"));
  bindings::bind_absorbed_audio_attention(m);
  bindings::bind_audio_cross_attention(m);
  bindings::bind_blf_step(m);
  bindings::bind_causal_conv3d(m);
  bindings::bind_dense_attention(m);
  bindings::bind_frames_to_uint8(m);
  bindings::bind_gate_residual_norm_modulate(m);
  bindings::bind_norm_modulate(m);
  bindings::bind_qk_norm_rope(m);
  bindings::bind_rms_norm_silu(m);
  bindings::bind_residual_apply(m);
  bindings::bind_residual_store(m);
  bindings::bind_teacache_gate(m);
}
