// Python's bytes-like objects and texts as C++ views.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "core/memory.hpp"
#include "core/transcode.hpp"

// A C-contiguous view of any bytes-like object. The exporter cannot resize or free it while the view lives.
class Bytes {
  public:
    explicit Bytes(const pybind11::handle& object) {
        if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) throw pybind11::error_already_set();
    }
    ~Bytes() { PyBuffer_Release(&view_); }
    Bytes(const Bytes&) = delete;
    Bytes& operator=(const Bytes&) = delete;

    const std::uint8_t* data() const { return static_cast<const std::uint8_t*>(view_.buf); }
    std::size_t size() const { return static_cast<std::size_t>(view_.len); }
    std::string_view text() const { return {static_cast<const char*>(view_.buf), size()}; }

  private:
    Py_buffer view_;
};

// The UTF-8 of a str. ASCII is used where it lies; other text is converted into memory of our own, faster than CPython
// does and without leaving a copy in the str. Raises TypeError for what is no str, UnicodeEncodeError for lone
// surrogates.
class Utf8 {
  public:
    explicit Utf8(const pybind11::handle& text) {
        PyObject* const object = text.ptr();
        if (!PyUnicode_Check(object))
            throw pybind11::type_error("expected str, got " + std::string(Py_TYPE(object)->tp_name));
#if PY_VERSION_HEX < 0x030C0000
        if (PyUnicode_READY(object) != 0) throw pybind11::error_already_set();
#endif
        const auto length = static_cast<std::size_t>(PyUnicode_GET_LENGTH(object));
        if (PyUnicode_IS_ASCII(object)) {
            view_ = {static_cast<const char*>(PyUnicode_DATA(object)), length};
            return;
        }
        const int kind = static_cast<int>(PyUnicode_KIND(object));
        buffer_.reset(static_cast<std::uint8_t*>(gptfast::allocate_large(gptfast::utf8_capacity(kind, length))));
        if (!buffer_) throw std::bad_alloc();
        const std::size_t size = gptfast::to_utf8(kind, PyUnicode_DATA(object), length, buffer_.get());
        if (size == gptfast::kSurrogate) {
            PyUnicode_AsUTF8AndSize(object, nullptr);  // says where
            throw pybind11::error_already_set();
        }
        view_ = {reinterpret_cast<const char*>(buffer_.get()), size};
    }

    std::string_view view() const { return view_; }

  private:
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };
    std::unique_ptr<std::uint8_t[], Free> buffer_;
    std::string_view view_;
};

// The UTF-8 of several str.
class Utf8Batch {
  public:
    template <class Texts>
    explicit Utf8Batch(const Texts& texts) {
        converted_.reserve(texts.size());
        views_.reserve(texts.size());
        for (const pybind11::object& text : texts) views_.push_back(converted_.emplace_back(text).view());
    }

    const std::vector<std::string_view>& views() const { return views_; }

  private:
    std::vector<Utf8> converted_;
    std::vector<std::string_view> views_;
};
