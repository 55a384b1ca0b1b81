// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/blf_step.h"

#include <pybind11/stl.h>

#include <vector>

#include "bindings.h"

namespace skyreels_rt::bindings {
namespace {

// Ascending from 0 to length - window without a gap.
bool windows_cover(const std::vector<int64_t>& starts, int64_t window, int64_t length) {
  if (starts.empty() || starts.front() != 0 || starts.back() + window != length) return false;
  for (size_t w = 1; w < starts.size(); ++w) {
    if (starts[w] <= starts[w - 1] || starts[w] > starts[w - 1] + window) return false;
  }
  return true;
}

void run(uintptr_t latents, const std::vector<uintptr_t>& velocities,
         const std::vector<int64_t>& starts, uintptr_t weights, const std::vector<float>& guidance,
         uintptr_t out, int dtype, int64_t window, int64_t channels, int64_t length,
         int64_t num_pinned, int64_t plane, int64_t latents_stride_channel,
         int64_t latents_stride_frame, int64_t stride_pass, int64_t stride_channel,
         int64_t stride_frame, float delta, int num_threads, const std::string& isa) {
  std::vector<const void*> addresses;
  for (const uintptr_t velocity : velocities) addresses.push_back(pointer<const void>(velocity));
  BlfStepParams p{};
  p.latents = pointer<const float>(latents);
  p.velocities = addresses.data();
  p.starts = starts.data();
  p.weights = pointer<const float>(weights);
  p.out = pointer<float>(out);
  p.delta = delta;
  p.num_windows = static_cast<int64_t>(starts.size());
  p.num_passes = static_cast<int64_t>(guidance.size());
  p.window = window;
  p.channels = channels;
  p.length = length;
  p.num_pinned = num_pinned;
  p.plane = plane;
  p.latents_stride_channel = latents_stride_channel;
  p.latents_stride_frame = latents_stride_frame;
  p.stride_pass = stride_pass;
  p.stride_channel = stride_channel;
  p.stride_frame = stride_frame;
  p.dtype = cpu_dtype(dtype);
  require(channels >= 0 && plane >= 0, "channels, plane: expected >= 0");
  require(num_pinned >= 0 && num_pinned <= length, "num_pinned: expected 0 to length");
  require(num_threads >= 1, "num_threads: expected >= 1");
  require(p.num_passes >= 1 && p.num_passes <= kMaxPasses, "guidance: expected 1 to 3 factors");
  require(addresses.size() == starts.size(), "velocities: expected one for each of starts");
  require(window >= 1 && windows_cover(starts, window, length),
          "starts: expected ascending windows that cover the length");
  const Isa chosen = parse_isa(isa);
  if (channels == 0 || plane == 0) return;
  require(p.weights != nullptr && p.out != nullptr, "weights, out: expected addresses, got null");
  for (const void* address : addresses) {
    require(address != nullptr, "velocities: expected addresses, got null");
  }
  for (size_t pass = 0; pass < guidance.size(); ++pass) p.guidance[pass] = guidance[pass];
  py::gil_scoped_release release;
  skyreels_rt::blf_step(p, chosen, num_threads);
}

}  // namespace

void bind_blf_step(py::module_& m) {
  m.def("blf_step", &run, py::arg("latents"), py::arg("velocities"), py::arg("starts"),
        py::arg("weights"), py::arg("guidance"), py::arg("out"), py::arg("dtype"),
        py::arg("window"), py::arg("channels"), py::arg("length"), py::arg("num_pinned"),
        py::arg("plane"), py::arg("latents_stride_channel"), py::arg("latents_stride_frame"),
        py::arg("stride_pass"), py::arg("stride_channel"), py::arg("stride_frame"),
        py::arg("delta"), py::arg("num_threads"), py::arg("isa") = "");
}

}  // namespace skyreels_rt::bindings
