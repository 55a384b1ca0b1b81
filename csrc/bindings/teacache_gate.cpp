// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/teacache_gate.h"

#include <pybind11/stl.h>

#include <vector>

#include "bindings.h"

namespace skyreels_rt::bindings {
namespace {

void run(uintptr_t signal, uintptr_t previous, uintptr_t accumulated, uintptr_t skip,
         const std::vector<double>& coefficients, int dtype, bool forced, int64_t count,
         float threshold, int num_threads, const std::string& isa) {
  TeacacheGateParams p{};
  p.signal = pointer<const void>(signal);
  p.previous = pointer<const void>(previous);
  p.accumulated = pointer<float>(accumulated);
  p.skip = pointer<uint8_t>(skip);
  p.num_coefficients = static_cast<int>(coefficients.size());
  p.forced = forced;
  p.count = count;
  p.threshold = threshold;
  p.dtype = cpu_dtype(dtype);
  require(count >= 0, "count: expected >= 0");
  require(num_threads >= 1, "num_threads: expected >= 1");
  require(!coefficients.empty() && coefficients.size() <= kMaxCoefficients,
          "coefficients: expected 1 to 8 numbers");
  for (size_t i = 0; i < coefficients.size(); ++i) p.coefficients[i] = coefficients[i];
  require(p.accumulated != nullptr && p.skip != nullptr,
          "accumulated, skip: expected addresses, got null");
  require(count == 0 || forced || (p.signal != nullptr && p.previous != nullptr),
          "signal, previous: expected addresses, got null");
  const Isa chosen = parse_isa(isa);
  py::gil_scoped_release release;
  skyreels_rt::teacache_gate(p, chosen, num_threads);
}

}  // namespace

void bind_teacache_gate(py::module_& m) {
  m.def("teacache_gate", &run, py::arg("signal"), py::arg("previous"), py::arg("accumulated"),
        py::arg("skip"), py::arg("coefficients"), py::arg("dtype"), py::arg("forced"),
        py::arg("count"), py::arg("threshold"), py::arg("num_threads"), py::arg("isa") = "");
}

}  // namespace skyreels_rt::bindings
