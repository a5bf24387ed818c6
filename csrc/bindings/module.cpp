// gptfast._core: the C++ core as Python sees it. Only conversions live here; the work is in core/.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>

#include "bpe.hpp"
#include "buffer.hpp"
#include "core/utf8.hpp"
#include "gpt.hpp"
#include "train.hpp"

namespace py = pybind11;

namespace {

std::optional<std::int64_t> offset_or_none(std::int64_t offset) {
    if (offset == gptfast::Utf8Validator::kValid) return std::nullopt;
    return offset;
}

std::string compiler() {
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "g++ " __VERSION__;
#elif defined(_MSC_VER)
    return "MSVC " + std::to_string(_MSC_VER);
#else
    return "unknown";
#endif
}

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.doc() = "The compiled core of gptfast.";

    m.attr("__version__") = GPTFAST_VERSION;
    m.attr("build_info") = py::dict(py::arg("version") = GPTFAST_VERSION, py::arg("compiler") = compiler(),
                                    py::arg("build_type") = GPTFAST_BUILD_TYPE, py::arg("cxx_standard") = GPTFAST_CXX);

    py::class_<gptfast::Utf8Validator>(m, "Utf8Validator",
                                       "Checks a stream of bytes for UTF-8. One object serves one thread at a time.")
        .def(py::init<>())
        .def(
            "feed",
            [](gptfast::Utf8Validator& self, const py::object& data) {
                const Bytes bytes(data);
                std::int64_t offset;
                {
                    const py::gil_scoped_release release;
                    offset = self.feed(bytes.data(), bytes.size());
                }
                return offset_or_none(offset);
            },
            py::arg("data"),
            "Read the next bytes (any contiguous buffer). Returns None, or the absolute offset of the first ill-formed "
            "sequence: the byte that bytes.decode reports in UnicodeDecodeError.start.")
        .def(
            "finish", [](gptfast::Utf8Validator& self) { return offset_or_none(self.finish()); },
            "Say that the stream ends here. Returns None, or the offset of the first ill-formed or unfinished "
            "sequence.");

    bind_bpe(m);
    bind_train(m);
    bind_gpt(m);
}
