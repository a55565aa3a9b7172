// Uninitialised memory for one call of a kernel, aligned to a cache line. In an anonymous namespace, unlike
// std::vector, so that code of one instruction set is never linked into another.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace cone {
namespace CONE_ISA {
namespace {

template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    const size_t bytes = (size_t(count) * sizeof(T) + 127) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  Scratch(int64_t count, T value) : Scratch(count) {
    for (int64_t i = 0; i < count; ++i) data_[i] = value;
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_;
};

}  // namespace
}  // namespace CONE_ISA
}  // namespace cone
