// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/causal_conv3d.h"

#include "bindings.h"

namespace skyreels_rt::bindings {
namespace {

void run(uintptr_t past, uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t residual,
         uintptr_t y, int64_t batch, int64_t channels, int64_t out_channels, int64_t frames,
         int64_t height, int64_t width, int64_t taps, bool doubled, int num_threads,
         const std::string& isa) {
  CausalConv3dParams p{};
  p.past = pointer<const float>(past);
  p.x = pointer<const float>(x);
  p.weight = pointer<const float>(weight);
  p.bias = pointer<const float>(bias);
  p.residual = pointer<const float>(residual);
  p.y = pointer<float>(y);
  p.batch = batch;
  p.channels = channels;
  p.out_channels = out_channels;
  p.frames = frames;
  p.height = height;
  p.width = width;
  p.taps = taps;
  p.doubled = doubled;
  require(batch >= 0 && frames >= 0 && height >= 0 && width >= 0, "sizes: expected >= 0");
  require(channels >= 1 && channels % kChannelMultiple == 0, "channels: expected 16, 32, ...");
  require(out_channels >= 1 && out_channels % kChannelMultiple == 0,
          "out_channels: expected 16, 32, ...");
  require(taps == 1 || taps == 3, "taps: expected 1 or 3");
  require(!doubled || (height % 2 == 0 && width % 2 == 0), "height, width: expected even");
  require(num_threads >= 1, "num_threads: expected >= 1");
  const Isa chosen = parse_isa(isa);
  if (batch == 0 || frames == 0 || height == 0 || width == 0) return;
  require(p.x && p.weight && p.y, "x, weight, y: expected addresses, got null");
  py::gil_scoped_release release;
  skyreels_rt::causal_conv3d(p, chosen, num_threads);
}

void pack(uintptr_t weight, uintptr_t packed, int64_t out_channels, int64_t channels, int64_t taps,
          const std::tuple<int64_t, int64_t, int64_t, int64_t>& strides, int num_threads,
          const std::string& isa) {
  PackConvWeightParams p{};
  p.weight = pointer<const float>(weight);
  p.packed = pointer<float>(packed);
  p.out_channels = out_channels;
  p.channels = channels;
  p.taps = taps;
  std::tie(p.stride_out, p.stride_in, p.stride_tap, p.stride_pixel) = strides;
  require(out_channels >= 1 && channels >= 1 && taps >= 1, "sizes: expected >= 1");
  require(num_threads >= 1, "num_threads: expected >= 1");
  require(p.weight && p.packed, "weight, packed: expected addresses, got null");
  const Isa chosen = parse_isa(isa);
  py::gil_scoped_release release;
  skyreels_rt::pack_conv_weight(p, chosen, num_threads);
}

}  // namespace

void bind_causal_conv3d(py::module_& m) {
  m.def("causal_conv3d", &run, py::arg("past"), py::arg("x"), py::arg("weight"), py::arg("bias"),
        py::arg("residual"), py::arg("y"), py::arg("batch"), py::arg("channels"),
        py::arg("out_channels"), py::arg("frames"), py::arg("height"), py::arg("width"),
        py::arg("taps"), py::arg("doubled"), py::arg("num_threads"), py::arg("isa") = "");
  m.def("pack_conv_weight", &pack, py::arg("weight"), py::arg("packed"), py::arg("out_channels"),
        py::arg("channels"), py::arg("taps"), py::arg("strides"), py::arg("num_threads"),
        py::arg("isa") = "");
}

}  // namespace skyreels_rt::bindings
