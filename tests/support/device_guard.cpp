// torch without CUDA has no guard for its devices and refuses to read a value from one; this one has nothing to guard.
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

using Base = c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>;

struct OneDevice final : Base {
  c10::Device exchangeDevice(c10::Device) const override { return getDevice(); }
  c10::Device getDevice() const override { return {c10::DeviceType::CUDA, 0}; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};

const c10::impl::DeviceGuardImplRegistrar registered(c10::DeviceType::CUDA, new OneDevice());

}  // namespace
