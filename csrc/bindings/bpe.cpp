#include "bpe.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "buffer.hpp"
#include "core/decode.hpp"
#include "core/parallel.hpp"
#include "core/pretokenize.hpp"
#include "core/tiktoken_file.hpp"
#include "core/tokenizer.hpp"
#include "core/utf8.hpp"
#include "pattern_named.hpp"

namespace py = pybind11;
using namespace gptfast;

namespace {

// Pairs of uint32 as Bpe.parts() writes them; none where the size is odd, which the vocabulary then finds itself.
Vocabulary::Parts to_parts(std::string_view data) {
    std::uint32_t pair[2];
    Vocabulary::Parts parts;
    if (data.size() % sizeof pair) return parts;
    parts.reserve(data.size() / sizeof pair);
    for (std::size_t at = 0; at < data.size(); at += sizeof pair) {
        std::memcpy(pair, data.data() + at, sizeof pair);
        parts.emplace_back(pair[0], pair[1]);
    }
    return parts;
}

// Empty where the vocabulary is not regular: it would not take its parts back.
py::bytes parts_of(const Vocabulary& vocabulary) {
    std::vector<std::uint32_t> parts;
    parts.reserve(2 * vocabulary.size());
    for (std::uint32_t rank = 0; vocabulary.regular() && rank < vocabulary.size(); ++rank) {
        const auto [left, right] = vocabulary.parts(rank);
        parts.push_back(left);
        parts.push_back(right);
    }
    return {reinterpret_cast<const char*>(parts.data()), parts.size() * sizeof parts[0]};
}

// More threads than cores gain nothing, and each has tables of its own.
std::size_t sensible(std::size_t threads) {
    return std::clamp<std::size_t>(threads, 1, std::max<std::size_t>(8, core_count()));
}

py::list to_list(const std::uint32_t* ids, std::size_t count) {
    py::list list(count);
    for (std::size_t i = 0; i < count; ++i) {
        PyObject* id = PyLong_FromUnsignedLong(ids[i]);
        if (!id) throw py::error_already_set();
        PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), id);
    }
    return list;
}

py::array_t<std::uint32_t> to_array(Tokens tokens) {
    tokens.shrink();
    const std::size_t size = tokens.size();
    std::uint32_t* data = tokens.release();
    return {{size}, {sizeof *data}, data, py::capsule(data, [](void* p) { std::free(p); })};
}

// The ids of a sequence of int or an array of integers.
std::vector<std::uint32_t> to_ids(const py::handle& object) {
    std::vector<std::uint32_t> ids;
    const auto out_of_range = [](const std::string& id) {
        PyErr_SetString(PyExc_OverflowError, ("the id " + id + " is out of range; ids are 0 .. 4294967295").c_str());
        return py::error_already_set();
    };
    if (py::isinstance<py::array>(object)) {
        const auto array = py::reinterpret_borrow<py::array>(object);
        if (array.ndim() != 1 || (array.dtype().kind() != 'i' && array.dtype().kind() != 'u'))
            throw py::type_error("expected integers [N], got " + std::string(py::str(array.dtype())) + " with " +
                                 std::to_string(array.ndim()) + " dimensions");
        if (array.dtype().kind() == 'u' && array.itemsize() <= 4) {
            const auto exact = py::array_t<std::uint32_t, py::array::c_style | py::array::forcecast>(array);
            return {exact.data(), exact.data() + exact.size()};
        }
        const auto wide = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>(array);
        ids.reserve(static_cast<std::size_t>(wide.size()));
        for (py::ssize_t i = 0; i < wide.size(); ++i) {
            const std::int64_t id = wide.data()[i];
            if (id < 0 || id > 0xFFFFFFFF) throw out_of_range(std::to_string(id));
            ids.push_back(static_cast<std::uint32_t>(id));
        }
        return ids;
    }
    auto sequence =
        py::reinterpret_steal<py::object>(PySequence_Fast(object.ptr(), "expected a sequence of token ids"));
    if (!sequence) throw py::error_already_set();
    const Py_ssize_t size = PySequence_Fast_GET_SIZE(sequence.ptr());
    ids.resize(static_cast<std::size_t>(size));
    bool plain = true;
    for (Py_ssize_t i = 0; plain && i < size; ++i)
        plain = PyLong_CheckExact(PySequence_Fast_GET_ITEM(sequence.ptr(), i));
    if (!plain) {  // __index__ may run any code, which may change the list
        sequence = py::reinterpret_steal<py::object>(PySequence_Tuple(sequence.ptr()));
        if (!sequence) throw py::error_already_set();
    }
    for (Py_ssize_t i = 0; i < size; ++i) {
        PyObject* item = PySequence_Fast_GET_ITEM(sequence.ptr(), i);
        int overflow = 0;
        const long long id = PyLong_AsLongLongAndOverflow(item, &overflow);
        if (id == -1 && PyErr_Occurred()) throw py::error_already_set();
        if (overflow || id < 0 || id > 0xFFFFFFFF) throw out_of_range(py::str(item));
        ids[static_cast<std::size_t>(i)] = static_cast<std::uint32_t>(id);
    }
    return ids;
}

[[noreturn]] void unknown_id(std::uint32_t id) {
    throw py::key_error("Invalid token for decoding: " + std::to_string(id));
}

// Whether a str is stored in anything but ASCII.
bool is_wide(PyObject* text) {
#if PY_VERSION_HEX < 0x030C0000
    if (PyUnicode_READY(text) != 0) throw py::error_already_set();
#endif
    return !PyUnicode_IS_ASCII(text);
}

class Bpe {
  public:
    Bpe(Vocabulary vocabulary, Pattern pattern) : tokenizer(std::move(vocabulary), pattern) {}

    SpecialSet allowed(const std::vector<std::string>& names) const {
        std::vector<Special> chosen;
        for (const Special& special : vocabulary().specials())
            if (std::find(names.begin(), names.end(), special.text) != names.end()) chosen.push_back(special);
        return SpecialSet(std::move(chosen));
    }
    const Vocabulary& vocabulary() const { return tokenizer.vocabulary(); }

    Tokens encode(const py::object& text, const std::vector<std::string>& names, std::size_t threads) const {
        if (names.empty() && PyUnicode_Check(text.ptr()) && is_wide(text.ptr())) {
            const Units units{static_cast<int>(PyUnicode_KIND(text.ptr())), PyUnicode_DATA(text.ptr()),
                              static_cast<std::size_t>(PyUnicode_GET_LENGTH(text.ptr()))};
            Tokens ids;
            bool good;
            {
                const py::gil_scoped_release release;
                good = tokenizer.encode(units, sensible(threads), ids);
            }
            if (good) return ids;
        }
        const Utf8 utf8(text);
        return encode(utf8.view(), names, threads);
    }

    Tokens encode(std::string_view text, const std::vector<std::string>& names, std::size_t threads) const {
        const SpecialSet specials = allowed(names);
        const py::gil_scoped_release release;
        return tokenizer.encode(text, specials, sensible(threads));
    }

    Tokens encode_batch(const std::vector<py::object>& texts, const std::vector<std::string>& names,
                        std::size_t threads, std::vector<std::int64_t>& ends) const {
        const Utf8Batch batch(texts);
        const SpecialSet specials = allowed(names);
        const py::gil_scoped_release release;
        return tokenizer.encode_batch(batch.views(), specials, sensible(threads), ends);
    }

    Tokenizer tokenizer;
};

std::vector<Special> to_specials(const py::dict& special) {
    std::vector<Special> specials;
    for (const auto& [text, id] : special)
        specials.push_back({std::string(Utf8(text).view()), py::cast<std::uint32_t>(id)});
    return specials;
}

py::bytes decode_ids(const Bpe& self, const std::vector<std::uint32_t>& ids) {
    std::size_t size, unknown;
    {
        const py::gil_scoped_release release;
        unknown = decoded_size(self.vocabulary(), ids.data(), ids.size(), size);
    }
    if (unknown != kAllKnown) unknown_id(ids[unknown]);
    auto bytes = py::reinterpret_steal<py::bytes>(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
    if (!bytes) throw py::error_already_set();
    char* out = PyBytes_AS_STRING(bytes.ptr());
    const py::gil_scoped_release release;
    decode(self.vocabulary(), ids.data(), ids.size(), out, size);
    return bytes;
}

py::list decode_batch(const Bpe& self, const py::iterable& batch, std::size_t threads) {
    std::vector<std::vector<std::uint32_t>> rows;
    for (const py::handle row : batch) rows.push_back(to_ids(row));
    std::vector<std::string> texts(rows.size());
    std::vector<std::size_t> unknown(rows.size());
    {
        const py::gil_scoped_release release;
        parallel_for(
            rows.size(), sensible(threads), [] { return 0; },
            [&](int, std::size_t i) {
                std::size_t size;
                unknown[i] = decoded_size(self.vocabulary(), rows[i].data(), rows[i].size(), size);
                if (unknown[i] != kAllKnown) return;
                texts[i].resize(size);
                decode(self.vocabulary(), rows[i].data(), rows[i].size(), texts[i].data(), size);
            });
    }
    py::list out;
    for (std::size_t i = 0; i < rows.size(); ++i) {
        if (unknown[i] != kAllKnown) unknown_id(rows[i][unknown[i]]);
        out.append(py::bytes(texts[i]));
    }
    return out;
}

}  // namespace

void bind_bpe(py::module_& m) {
    const auto special = py::arg("special"), pattern = py::arg("pattern");
    const auto text = py::arg("text"), allowed = py::arg("allowed");
    const auto threads = py::arg("threads") = 1;

    py::class_<Bpe>(m, "BPE", "A byte-pair tokenizer. One object serves any number of threads.")
        .def(py::init([](const std::vector<py::bytes>& tokens, const std::vector<std::uint32_t>& ids,
                         const py::dict& specials, const std::string& name) {
                 std::vector<std::string_view> views(tokens.begin(), tokens.end());
                 return std::make_unique<Bpe>(Vocabulary(views, ids, to_specials(specials)), pattern_named(name));
             }),
             py::arg("tokens"), py::arg("ids"), special, pattern,
             "`tokens` (bytes) in order of merge rank, and the id of each; `pattern`: gpt2, cl100k, o200k, or '' where "
             "the "
             "caller splits.")
        .def_static(
            "from_tiktoken",
            [](const py::object& data, const py::dict& specials, const std::string& name, const py::bytes& parts) {
                const Bytes bytes(data), given(parts);
                std::vector<Special> special_tokens = to_specials(specials);
                const Pattern split = pattern_named(name);
                const py::gil_scoped_release release;
                const TiktokenFile file = parse_tiktoken(bytes.text());
                return std::make_unique<Bpe>(
                    Vocabulary(file.tokens, file.ranks, std::move(special_tokens), to_parts(given.text())), split);
            },
            py::arg("data"), special, pattern, py::arg("parts") = py::bytes(),
            "From the content of a .tiktoken file; `parts`, if right, saves most of the time.")
        .def("parts", [](const Bpe& self) { return parts_of(self.vocabulary()); })
        .def(
            "encode",
            [](const Bpe& self, const py::object& s, const std::vector<std::string>& names, std::size_t n) {
                const Tokens ids = self.encode(s, names, n);
                return to_list(ids.data(), ids.size());
            },
            text, allowed, threads, "The ids as a list; `allowed` names the special tokens to recognise.")
        .def(
            "encode_to_numpy",
            [](const Bpe& self, const py::object& s, const std::vector<std::string>& names, std::size_t n) {
                return to_array(self.encode(s, names, n));
            },
            text, allowed, threads, "The ids as uint32 [N].")
        .def(
            "encode_buffer",
            [](const Bpe& self, const py::object& data, const std::vector<std::string>& names, std::size_t n) {
                const Bytes bytes(data);
                std::int64_t invalid;
                {
                    const py::gil_scoped_release release;
                    Utf8Validator validator;
                    validator.feed(bytes.data(), bytes.size());
                    invalid = validator.finish();
                }
                if (invalid != Utf8Validator::kValid)
                    throw py::value_error("not UTF-8 at byte " + std::to_string(invalid));
                return to_array(self.encode(bytes.text(), names, n));
            },
            py::arg("data"), allowed, threads, "As encode_to_numpy, of any buffer that holds UTF-8.")
        .def(
            "encode_batch",
            [](const Bpe& self, const std::vector<py::object>& texts, const std::vector<std::string>& names,
               std::size_t n) {
                std::vector<std::int64_t> ends;
                const Tokens ids = self.encode_batch(texts, names, n, ends);
                py::list out(texts.size());
                std::size_t begin = 0;
                for (std::size_t i = 0; i < texts.size(); ++i) {
                    const auto end = static_cast<std::size_t>(ends[i]);
                    out[i] = to_list(ids.data() + begin, end - begin);
                    begin = end;
                }
                return out;
            },
            py::arg("texts"), allowed, threads, "A list of ids for each text.")
        .def(
            "encode_batch_to_numpy",
            [](const Bpe& self, const std::vector<py::object>& texts, const std::vector<std::string>& names,
               std::size_t n) {
                std::vector<std::int64_t> ends;
                Tokens ids = self.encode_batch(texts, names, n, ends);
                ends.insert(ends.begin(), 0);
                return py::make_tuple(to_array(std::move(ids)),
                                      py::array_t<std::int64_t>(static_cast<py::ssize_t>(ends.size()), ends.data()));
            },
            py::arg("texts"), allowed, threads,
            "All ids, uint32 [N], and int64 [B + 1]: text i has ids[at[i]:at[i + 1]].")
        .def(
            "encode_pieces",
            [](const Bpe& self, const py::object& data,
               const py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>& ends) {
                const Bytes bytes(data);
                const auto count = static_cast<std::size_t>(ends.size());
                const std::int64_t* first = ends.data();
                Tokens ids;
                {
                    const py::gil_scoped_release release;
                    ids = self.tokenizer.encode_pieces(bytes.text(), first, count);
                }
                return to_array(std::move(ids));
            },
            py::arg("data"), py::arg("ends"),
            "The ids of pieces that are already split: piece i is data[ends[i - 1]:ends[i]].")
        .def(
            "encode_piece",
            [](const Bpe& self, const py::object& data) {
                const Bytes bytes(data);
                const auto size = static_cast<std::int64_t>(bytes.size());
                const Tokens ids = self.tokenizer.encode_pieces(bytes.text(), &size, 1);
                return to_list(ids.data(), ids.size());
            },
            py::arg("data"), "The ids of one pre-token, any bytes.")
        .def(
            "split",
            [](const Bpe& self, const py::object& s) {
                const Utf8 utf8(s);
                const std::string_view view = utf8.view();
                std::vector<std::int64_t> ends;
                {
                    const py::gil_scoped_release release;
                    const auto* begin = reinterpret_cast<const std::uint8_t*>(view.data());
                    pretokenize(self.tokenizer.pattern(), begin, view.size(),
                                [&](const std::uint8_t*, const std::uint8_t* end) { ends.push_back(end - begin); });
                }
                return py::array_t<std::int64_t>(static_cast<py::ssize_t>(ends.size()), ends.data());
            },
            text, "Where each pre-token ends, in bytes of UTF-8: int64 [P].")
        .def(
            "count", [](const Bpe& self, const py::object& s, std::size_t n) { return self.encode(s, {}, n).size(); },
            text, threads, "The number of ids of ordinary text.")
        .def(
            "decode", [](const Bpe& self, const py::object& ids) { return decode_ids(self, to_ids(ids)); },
            py::arg("ids"),
            "The bytes of ids: a sequence of int or an array of integers. KeyError for an id that does not exist.")
        .def("decode_batch", &decode_batch, py::arg("batch"), threads, "The bytes of each row of ids.")
        .def(
            "token_bytes",
            [](const Bpe& self, std::uint32_t id) {
                const std::string_view token = self.vocabulary().decode(id);
                if (token.empty()) throw py::key_error(std::to_string(id));
                return py::bytes(token.data(), token.size());
            },
            py::arg("id"))
        .def(
            "token_id",
            [](const Bpe& self, const py::bytes& data) {
                const std::uint32_t rank = self.vocabulary().find(std::string_view(data));
                if (rank == kNoToken) {
                    PyErr_SetObject(PyExc_KeyError, data.ptr());
                    throw py::error_already_set();
                }
                return self.vocabulary().id(rank);
            },
            py::arg("data"))
        .def("token_byte_values",
             [](const Bpe& self) {
                 const Vocabulary& v = self.vocabulary();
                 std::vector<std::string_view> tokens;
                 for (std::uint32_t rank = 0; rank < v.size(); ++rank) tokens.push_back(v.bytes(rank));
                 std::sort(tokens.begin(), tokens.end());
                 py::list out;
                 for (const std::string_view token : tokens) out.append(py::bytes(token.data(), token.size()));
                 return out;
             })
        .def("mergeable_ranks",
             [](const Bpe& self) {
                 const Vocabulary& v = self.vocabulary();
                 py::dict out;
                 for (std::uint32_t rank = 0; rank < v.size(); ++rank)
                     out[py::bytes(v.bytes(rank).data(), v.bytes(rank).size())] = v.id(rank);
                 return out;
             })
        .def("merge_pairs",
             [](const Bpe& self) {
                 const Vocabulary& v = self.vocabulary();
                 py::list out;
                 for (std::uint32_t rank = 0; rank < v.size(); ++rank) {
                     const auto [left, right] = v.parts(rank);
                     if (left == kNoToken) continue;
                     out.append(py::make_tuple(py::bytes(v.bytes(left).data(), v.bytes(left).size()),
                                               py::bytes(v.bytes(right).data(), v.bytes(right).size())));
                 }
                 return out;
             })
        .def_property_readonly("n_tokens", [](const Bpe& self) { return self.vocabulary().size(); })
        .def("memory", [](const Bpe& self) {
            return py::dict(py::arg("vocabulary") = self.vocabulary().memory(),
                            py::arg("caches") = self.tokenizer.caches_memory());
        });
}
