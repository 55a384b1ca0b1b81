// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/rms_norm_silu.h"

#include "bindings.h"

namespace skyreels_rt::bindings {
namespace {

void run(uintptr_t x, uintptr_t y, uintptr_t gamma, int dtype, int64_t batch, int64_t channels,
         int64_t positions, bool channels_last, bool silu, int num_threads,
         const std::string& isa) {
  RmsNormSiluParams p{};
  p.x = pointer<const void>(x);
  p.y = pointer<void>(y);
  p.gamma = pointer<const float>(gamma);
  p.batch = batch;
  p.channels = channels;
  p.positions = positions;
  p.dtype = cpu_dtype(dtype);
  p.channels_last = channels_last;
  p.silu = silu;
  require(batch >= 0 && positions >= 0, "batch, positions: expected >= 0");
  require(channels >= 1, "channels: expected >= 1");
  require(num_threads >= 1, "num_threads: expected >= 1");
  const Isa chosen = parse_isa(isa);
  if (batch == 0 || positions == 0) return;
  require(p.x && p.y && p.gamma, "x, y, gamma: expected addresses, got null");
  py::gil_scoped_release release;
  skyreels_rt::rms_norm_silu(p, chosen, num_threads);
}

}  // namespace

void bind_rms_norm_silu(py::module_& m) {
  m.def("rms_norm_silu", &run, py::arg("x"), py::arg("y"), py::arg("gamma"), py::arg("dtype"),
        py::arg("batch"), py::arg("channels"), py::arg("positions"), py::arg("channels_last"),
        py::arg("silu"), py::arg("num_threads"), py::arg("isa") = "");
}

}  // namespace skyreels_rt::bindings
