// SPDX-License-Identifier: Apache-2.0
// The Python face of the CPU operators. Tensors come as addresses, sizes and strides, so that
// nothing of torch is needed to build this. Sizes and codes are checked here, tensors in kernels/;
// skyreels_rt/_C.pyi holds the signatures for Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "skyreels_rt/cpu_kernels.h"

namespace py = pybind11;
namespace rt = skyreels_rt;

namespace {

constexpr const char* kIsaNames[] = {"plain", "avx2", "avx512"};

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

rt::DType cpu_dtype(int code) {
  require(code == 0 || code == 1, "dtype: expected 0 (float32) or 1 (bfloat16)");
  return static_cast<rt::DType>(code);
}

rt::Isa parse_isa(const std::string& name) {
  if (name.empty()) return rt::best_isa();
  for (int i = 0; i < 3; ++i) {
    if (name == kIsaNames[i]) return static_cast<rt::Isa>(i);
  }
  throw std::invalid_argument("isa: expected '', 'plain', 'avx2' or 'avx512', got '" + name + "'");
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (int i = 0; i < 3; ++i) {
    if (rt::isa_available(static_cast<rt::Isa>(i))) names.emplace_back(kIsaNames[i]);
  }
  return names;
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void frames_to_uint8(uintptr_t src, uintptr_t dst, int dtype, int64_t num_frames, int64_t plane,
                     int64_t stride_channel, int64_t stride_frame, int num_threads,
                     const std::string& isa) {
  rt::FramesToUint8Params p{};
  p.src = pointer<const void>(src);
  p.dst = pointer<uint8_t>(dst);
  p.dtype = cpu_dtype(dtype);
  p.num_frames = num_frames;
  p.plane = plane;
  p.stride_channel = stride_channel;
  p.stride_frame = stride_frame;
  require(num_frames >= 0 && plane >= 0, "num_frames, plane: expected >= 0");
  require(num_threads >= 1, "num_threads: expected >= 1");
  const rt::Isa chosen = parse_isa(isa);
  if (num_frames == 0 || plane == 0) return;
  require(p.src != nullptr && p.dst != nullptr, "src, dst: expected addresses, got null");
  py::gil_scoped_release release;
  rt::frames_to_uint8(p, chosen, num_threads);
}

void qk_norm_rope(uintptr_t q, uintptr_t k, uintptr_t weight_q, uintptr_t weight_k, uintptr_t cos,
                  uintptr_t sin, int dtype, int64_t batch, int64_t length, int64_t num_heads,
                  int64_t head_dim, int64_t q_stride_batch, int64_t q_stride_row,
                  int64_t k_stride_batch, int64_t k_stride_row, float eps, int num_threads,
                  const std::string& isa) {
  rt::QkNormRopeParams p{};
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
  const rt::Isa chosen = parse_isa(isa);
  if (batch == 0 || length == 0) return;
  require(p.q && p.k && p.weight_q && p.weight_k && p.cos && p.sin,
          "q, k, weight_q, weight_k, cos, sin: expected addresses, got null");
  py::gil_scoped_release release;
  rt::qk_norm_rope(p, chosen, num_threads);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU operators of skyreels_rt (csrc/). No torch, no CUDA.";
  m.attr("ABI_VERSION") = rt::kAbiVersion;
  m.def("isa", [] { return kIsaNames[static_cast<int>(rt::best_isa())]; });
  m.def("available_isas", &available_isas);
  m.def("frames_to_uint8", &frames_to_uint8, py::arg("src"), py::arg("dst"), py::arg("dtype"),
        py::arg("num_frames"), py::arg("plane"), py::arg("stride_channel"), py::arg("stride_frame"),
        py::arg("num_threads"), py::arg("isa") = "");
  m.def("qk_norm_rope", &qk_norm_rope, py::arg("q"), py::arg("k"), py::arg("weight_q"),
        py::arg("weight_k"), py::arg("cos"), py::arg("sin"), py::arg("dtype"), py::arg("batch"),
        py::arg("length"), py::arg("num_heads"), py::arg("head_dim"), py::arg("q_stride_batch"),
        py::arg("q_stride_row"), py::arg("k_stride_batch"), py::arg("k_stride_row"), py::arg("eps"),
        py::arg("num_threads"), py::arg("isa") = "");
}
