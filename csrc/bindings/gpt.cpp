#include "gpt.hpp"

#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "gpt/step.hpp"

namespace py = pybind11;

namespace {

using Numbers = std::vector<std::int64_t>;
using Address = std::uintptr_t;

const void* at(Address address) { return reinterpret_cast<const void*>(address); }

void require(const Numbers& numbers, std::int64_t end, const char* what) {
    for (const std::int64_t number : numbers)
        if (number < 0 || number >= end)
            throw py::value_error(std::string(what) + " " + std::to_string(number) + " is not below " +
                                  std::to_string(end));
}

class Step {
  public:
    Step(gptfast::GptWeights model, const std::string& instructions, int threads)
        : model_(std::move(model)),
          kernels_(gptfast::step_kernels(instructions.c_str(), model_.bfloat16)),
          threads_(threads) {
        if (!kernels_) throw py::value_error("this processor has no kernels named " + instructions);
    }

    void run(Address keys, Address values, std::int64_t cache_rows, const Numbers& tokens, const Numbers& rows,
             const Numbers& positions, Address logits) {
        if (rows.size() != tokens.size() || positions.size() != tokens.size())
            throw py::value_error("tokens, rows and positions differ in length");
        require(tokens, model_.vocab, "token");
        require(rows, cache_rows, "row");
        require(positions, model_.context, "position");
        const py::gil_scoped_release release;
        gptfast::gpt_step(model_, *kernels_, threads_, reinterpret_cast<void*>(keys), reinterpret_cast<void*>(values),
                          cache_rows,
                          {tokens.data(), rows.data(), positions.data(), static_cast<std::int64_t>(tokens.size())},
                          reinterpret_cast<float*>(logits));
    }

  private:
    gptfast::GptWeights model_;
    const gptfast::StepKernels* kernels_;
    int threads_;
};

// Addresses in the order of a block: ln_1, c_attn, c_proj, ln_2, c_fc, c_proj, each weight and bias.
gptfast::BlockWeights block_of(const std::vector<Address>& w, std::int64_t window) {
    if (w.size() != 12) throw py::value_error("a block has 12 weights");
    return {{at(w[0]), at(w[1])},
            {at(w[2]), at(w[3])},
            {at(w[4]), at(w[5])},
            {at(w[6]), at(w[7])},
            {at(w[8]), at(w[9])},
            {at(w[10]), at(w[11])},
            window};
}

}  // namespace

void bind_gpt(py::module_& m) {
    py::class_<Step>(
        m, "GptStep",
        "One more token of GPT-2 for each of some rows of text, on a CPU. Takes the addresses of contiguous "
        "tensors, fp32 or bf16, which the caller keeps alive. One thread at a time.")
        .def(py::init([](bool bfloat16, bool exact_gelu, float eps, std::int64_t vocab, std::int64_t context,
                         std::int64_t heads, std::int64_t width, std::int64_t hidden, const std::vector<Address>& outer,
                         const std::vector<std::vector<Address>>& blocks, const Numbers& windows, int threads,
                         const std::string& instructions) {
                 if (outer.size() != 5 || windows.size() != blocks.size())
                     throw py::value_error("wte, wpe, ln_f's weight and bias, and head; a window for each block");
                 gptfast::GptWeights model{bfloat16,     exact_gelu,   eps,   vocab,
                                           context,      heads,        width, hidden,
                                           at(outer[0]), at(outer[1]), {},    {at(outer[2]), at(outer[3])},
                                           at(outer[4])};
                 for (std::size_t i = 0; i < blocks.size(); ++i)
                     model.blocks.push_back(block_of(blocks[i], windows[i]));
                 return std::make_unique<Step>(std::move(model), instructions, threads);
             }),
             py::kw_only(), py::arg("bfloat16"), py::arg("exact_gelu"), py::arg("eps"), py::arg("vocab"),
             py::arg("context"), py::arg("heads"), py::arg("width"), py::arg("hidden"), py::arg("outer"),
             py::arg("blocks"), py::arg("windows"), py::arg("threads"), py::arg("instructions") = "")
        .def("run", &Step::run, py::arg("keys"), py::arg("values"), py::arg("cache_rows"), py::arg("tokens"),
             py::arg("rows"), py::arg("positions"), py::arg("logits"),
             "Write fp32 logits [n, vocab] after tokens[i] of row rows[i] at positions[i]; keys and values [L, "
             "cache_rows, context, H, D] gain them.");
}
