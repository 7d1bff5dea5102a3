// Workspace whose content is written before it is read: neither zeroed nor copied, and on whole cache lines.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace simkit {

template <class T>
class Buffer {
  public:
    explicit Buffer(std::int64_t size)
        : data_(static_cast<T*>(::operator new(static_cast<std::size_t>(size) * sizeof(T), kLine))) {}
    T* data() { return data_.get(); }
    const T* data() const { return data_.get(); }
    T& operator[](std::int64_t k) { return data_.get()[k]; }
    const T& operator[](std::int64_t k) const { return data_.get()[k]; }

  private:
    static constexpr std::align_val_t kLine{64};
    struct Free {
        void operator()(T* p) const { ::operator delete(p, kLine); }
    };
    std::unique_ptr<T, Free> data_;
};

}  // namespace simkit
