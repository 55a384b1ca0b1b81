// SPDX-License-Identifier: Apache-2.0
// What the bindings of all operators share. Tensors come as addresses, sizes and strides, so that
// nothing of torch is needed to build this. Sizes and codes are checked here, tensors in kernels/;
// skyreels_rt/_C.pyi holds the signatures for Python.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "skyreels_rt/isa.h"
#include "skyreels_rt/types.h"

namespace skyreels_rt::bindings {

namespace py = pybind11;

constexpr int kIsaCount = 4;
constexpr const char* kIsaNames[kIsaCount] = {"plain", "avx2", "avx512", "avx512_bf16"};

inline void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

// Element type by its code; the CPU operators take float32 and bfloat16.
DType cpu_dtype(int code);

// Instruction set by its name, the widest for "".
Isa parse_isa(const std::string& name);

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// A SegmentTable as Python passes it: address, segments, stride of the batch, of a segment.
using Table = std::tuple<uintptr_t, int64_t, int64_t, int64_t>;

// Throws std::invalid_argument with `what` unless the table's segments divide `length`.
SegmentTable segment_table(const Table& table, int64_t length, const char* what);

// One for each csrc/bindings/<op>.cpp.
void bind_absorbed_audio_attention(py::module_& m);
void bind_audio_cross_attention(py::module_& m);
void bind_blf_step(py::module_& m);
void bind_causal_conv3d(py::module_& m);
void bind_dense_attention(py::module_& m);
void bind_frames_to_uint8(py::module_& m);
void bind_gate_residual_norm_modulate(py::module_& m);
void bind_norm_modulate(py::module_& m);
void bind_qk_norm_rope(py::module_& m);
void bind_rms_norm_silu(py::module_& m);
void bind_residual_apply(py::module_& m);
void bind_residual_store(py::module_& m);
void bind_teacache_gate(py::module_& m);

}  // namespace skyreels_rt::bindings
