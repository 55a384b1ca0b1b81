// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/absorbed_audio_attention.h"

#include "bindings.h"

namespace skyreels_rt::bindings {
namespace {

void run(uintptr_t logits, uintptr_t shifts, uintptr_t out, int dtype, int64_t frames, int64_t rows,
         int64_t num_heads, int64_t tokens, int num_threads, const std::string& isa) {
  GroupSoftmaxParams p{};
  p.logits = pointer<const float>(logits);
  p.shifts = pointer<const float>(shifts);
  p.out = pointer<void>(out);
  p.frames = frames;
  p.rows = rows;
  p.num_heads = num_heads;
  p.tokens = tokens;
  p.dtype = cpu_dtype(dtype);
  require(frames >= 0 && rows >= 0, "frames, rows: expected >= 0");
  require(num_heads >= 1 && tokens >= 1, "num_heads, tokens: expected >= 1");
  require(num_threads >= 1, "num_threads: expected >= 1");
  const Isa chosen = parse_isa(isa);
  if (frames == 0 || rows == 0) return;
  require(p.logits && p.shifts && p.out, "logits, shifts, out: expected addresses, got null");
  py::gil_scoped_release release;
  skyreels_rt::group_softmax(p, chosen, num_threads);
}

}  // namespace

void bind_absorbed_audio_attention(py::module_& m) {
  m.def("group_softmax", &run, py::arg("logits"), py::arg("shifts"), py::arg("out"),
        py::arg("dtype"), py::arg("frames"), py::arg("rows"), py::arg("num_heads"),
        py::arg("tokens"), py::arg("num_threads"), py::arg("isa") = "");
}

}  // namespace skyreels_rt::bindings
