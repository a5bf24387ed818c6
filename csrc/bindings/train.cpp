#include "train.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "buffer.hpp"
#include "core/train.hpp"
#include "core/word_counts.hpp"
#include "pattern_named.hpp"

namespace py = pybind11;
using namespace gptfast;

namespace {

// Calls a Python function from work that runs without the GIL, a few times a second, and looks for Ctrl-C. What either
// raises stops the work, and rethrow() raises it again.
class Reporter {
  public:
    explicit Reporter(py::object function) : function_(std::move(function)) {}

    bool operator()(std::size_t done) {
        const auto now = std::chrono::steady_clock::now();
        if (now - last_ < std::chrono::milliseconds(100)) return true;
        last_ = now;
        const py::gil_scoped_acquire acquire;
        try {
            if (PyErr_CheckSignals() != 0) throw py::error_already_set();
            if (!function_.is_none()) function_(done);
        } catch (...) {
            raised_ = std::current_exception();
        }
        return raised_ == nullptr;
    }
    void rethrow() const {
        if (raised_) std::rethrow_exception(raised_);
    }

  private:
    py::object function_;
    std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
    std::exception_ptr raised_;
};

std::unique_ptr<WordCounts> make_counter(const std::string& pattern, std::size_t max_bytes,
                                         const std::vector<std::string>& special) {
    std::vector<Special> specials;
    std::size_t longest = 0;
    for (const std::string& text : special) {
        if (text.empty()) throw py::value_error("a special token is empty");
        specials.push_back({text, static_cast<std::uint32_t>(specials.size())});
        longest = std::max(longest, text.size());
    }
    return std::make_unique<WordCounts>(pattern_named(pattern), max_bytes, SpecialSet(std::move(specials)), longest);
}

void count(WordCounts& self, const std::vector<std::string_view>& documents, std::size_t threads, py::object progress) {
    Reporter reporter(std::move(progress));
    std::optional<WordCounts::Invalid> invalid;
    {
        const py::gil_scoped_release release;
        invalid = self.add(documents, std::max<std::size_t>(threads, 1), std::ref(reporter));
    }
    reporter.rethrow();
    if (invalid) throw py::value_error("invalid UTF-8 at byte " + std::to_string(invalid->offset));
}

py::tuple train(WordCounts& counter, std::size_t n_merges, py::object progress) {
    Reporter reporter(std::move(progress));
    std::vector<Merge> merges;
    std::vector<std::string> tokens;
    {
        const py::gil_scoped_release release;
        merges = train_bpe(counter.words(), n_merges, std::ref(reporter));
        tokens = token_bytes(merges);
    }
    reporter.rethrow();
    py::list list(tokens.size());
    for (std::size_t i = 0; i < tokens.size(); ++i) list[i] = py::bytes(tokens[i]);
    static_assert(sizeof(Merge) == 2 * sizeof(std::uint32_t));
    py::array_t<std::uint32_t> pairs({merges.size(), std::size_t{2}});
    if (!merges.empty()) std::memcpy(pairs.mutable_data(), merges.data(), merges.size() * sizeof(Merge));
    return py::make_tuple(list, pairs);
}

}  // namespace

void bind_train(py::module_& m) {
    py::class_<WordCounts>(
        m, "WordCounter",
        "Counts the distinct pre-tokens of texts, in about max_bytes of memory: where they need more, "
        "the rarest are forgotten. Special tokens in a text separate documents. One thread at a time.")
        .def(py::init(&make_counter), py::arg("pattern"), py::arg("max_bytes"),
             py::arg("special") = std::vector<std::string>())
        .def(
            "add_text",
            [](WordCounts& self, const py::object& text, std::size_t threads, py::object progress) {
                if (PyUnicode_Check(text.ptr())) {
                    const Utf8 utf8(text);
                    return count(self, {utf8.view()}, threads, std::move(progress));
                }
                const Bytes bytes(text);
                count(self, {bytes.text()}, threads, std::move(progress));
            },
            py::arg("text"), py::arg("threads") = 1, py::arg("progress") = py::none(),
            "Count a str, or a buffer of UTF-8. progress(bytes done) is called now and then; what it raises ends the "
            "call. Raises ValueError that names the offset where the buffer is not UTF-8.")
        .def(
            "add_documents",
            [](WordCounts& self, const std::vector<py::object>& documents, std::size_t threads) {
                const Utf8Batch batch(documents);
                count(self, batch.views(), threads, py::none());
            },
            py::arg("documents"), py::arg("threads") = 1,
            "Count many str. No pre-token goes across from one to another.")
        .def(
            "add_pieces",
            [](WordCounts& self, const py::object& data, const py::array_t<std::int64_t, py::array::c_style>& ends) {
                const Bytes bytes(data);
                const py::gil_scoped_release release;
                self.add_pieces(bytes.text(), ends.data(), static_cast<std::size_t>(ends.size()));
            },
            py::arg("data"), py::arg("ends"),
            "Count pieces that are split already: piece i is data[ends[i-1]:ends[i]].")
        .def_property_readonly(
            "unique", [](WordCounts& self) { return self.words().unique(); }, "The distinct pre-tokens held now.")
        .def_property_readonly("total", &WordCounts::total, "All pre-tokens counted.")
        .def_property_readonly("pruned", &WordCounts::pruned, "How many distinct pre-tokens were forgotten.");

    m.def(
        "train_bpe", &train, py::arg("counter"), py::arg("n_merges"), py::arg("progress") = py::none(),
        "Learn up to n_merges merges; fewer where every word has become one token. progress(merges done) is called now "
        "and then. Returns the tokens in the order of their ids (256 single bytes in GPT-2's order, then one a merge), "
        "list[bytes], and the pairs of ids that were merged, uint32 [merges, 2].");
}
