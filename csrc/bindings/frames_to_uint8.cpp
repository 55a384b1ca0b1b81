// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/frames_to_uint8.h"

#include "bindings.h"

namespace skyreels_rt::bindings {
namespace {

void run(uintptr_t src, uintptr_t dst, int dtype, int64_t num_frames, int64_t plane,
         int64_t stride_channel, int64_t stride_frame, int num_threads, const std::string& isa) {
  FramesToUint8Params p{};
  p.src = pointer<const void>(src);
  p.dst = pointer<uint8_t>(dst);
  p.dtype = cpu_dtype(dtype);
  p.num_frames = num_frames;
  p.plane = plane;
  p.stride_channel = stride_channel;
  p.stride_frame = stride_frame;
  require(num_frames >= 0 && plane >= 0, "num_frames, plane: expected >= 0");
  require(num_threads >= 1, "num_threads: expected >= 1");
  const Isa chosen = parse_isa(isa);
  if (num_frames == 0 || plane == 0) return;
  require(p.src != nullptr && p.dst != nullptr, "src, dst: expected addresses, got null");
  py::gil_scoped_release release;
  skyreels_rt::frames_to_uint8(p, chosen, num_threads);
}

}  // namespace

void bind_frames_to_uint8(py::module_& m) {
  m.def("frames_to_uint8", &run, py::arg("src"), py::arg("dst"), py::arg("dtype"),
        py::arg("num_frames"), py::arg("plane"), py::arg("stride_channel"), py::arg("stride_frame"),
        py::arg("num_threads"), py::arg("isa") = "");
}

}  // namespace skyreels_rt::bindings
