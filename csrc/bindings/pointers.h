// Pointers as Python hands them over: integers, lists of them for layers, dicts of them by the names of sums.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "cone/moments.h"

namespace cone {
namespace bindings {

using Address = uintptr_t;
using Pointers = std::map<std::string, Address>;
using Strides = std::tuple<int64_t, int64_t, int64_t>;
using Unlocked = pybind11::call_guard<pybind11::gil_scoped_release>;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

template <class T>
T* field(const Pointers& pointers, const char* name) {
  const auto found = pointers.find(name);
  return found == pointers.end() ? nullptr : at<T>(found->second);
}

inline std::vector<const void*> layer_pointers(const std::vector<Address>& layers) {
  std::vector<const void*> pointers;
  for (const Address address : layers) pointers.push_back(at<const void>(address));
  return pointers;
}

inline MomentSums moment_sums(const Pointers& sums, int64_t groups) {
  return {groups,
          field<int64_t>(sums, "count"),
          field<int64_t>(sums, "n_zero"),
          field<int64_t>(sums, "n_nonfinite"),
          field<double>(sums, "unit_sum"),
          field<double>(sums, "unit_sq_total"),
          field<double>(sums, "unit_sq_sum"),
          field<double>(sums, "sum"),
          field<double>(sums, "sq_sum"),
          field<double>(sums, "norm_sum"),
          field<double>(sums, "norm_sq_sum")};
}

inline HiddenStates hidden_states(const std::vector<const void*>& layers, int dtype, int64_t n_sentences,
                                  int64_t n_tokens, int64_t d, const Strides& strides, Address mask,
                                  Address cu_seqlens) {
  return {layers.data(),
          int64_t(layers.size()),
          DType(dtype),
          n_sentences,
          n_tokens,
          d,
          std::get<0>(strides),
          std::get<1>(strides),
          std::get<2>(strides),
          at<const uint8_t>(mask),
          at<const int64_t>(cu_seqlens)};
}

}  // namespace bindings
}  // namespace cone
