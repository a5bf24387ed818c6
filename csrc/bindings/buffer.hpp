// Python's bytes-like objects and texts as C++ views.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <string_view>

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

// The UTF-8 of a str, valid as long as the str. Raises UnicodeEncodeError for lone surrogates.
inline std::string_view utf8(const pybind11::handle& text) {
    if (!PyUnicode_Check(text.ptr()))
        throw pybind11::type_error("expected str, got " + std::string(Py_TYPE(text.ptr())->tp_name));
    Py_ssize_t size = 0;
    const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (!data) throw pybind11::error_already_set();
    return {data, static_cast<std::size_t>(size)};
}
