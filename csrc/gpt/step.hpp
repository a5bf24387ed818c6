// One more token of GPT-2 for each of some rows of text, on a CPU: all layers in one call.
//
// A step reads every weight once and does two operations with each, so that its time is that of reading memory. A
// framework adds to that a way to every operation and a matrix-vector product made for matrices (docs/decisions.md).
// Weights, keys and values are fp32 or bf16; what is computed between them is fp32.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.hpp"

namespace gptfast {

// y = weight x + bias, weight [out, in]; bias [out] may be null.
struct LinearWeights {
    const void* weight;
    const void* bias;
};

// y = weight (x - mean) / sqrt(variance + eps) + bias, each [C]; bias may be null.
struct NormWeights {
    const void* weight;
    const void* bias;
};

struct BlockWeights {
    NormWeights ln_1;
    LinearWeights c_attn, attn_proj;
    NormWeights ln_2;
    LinearWeights c_fc, mlp_proj;
    std::int64_t window;  // keys that a query sees; 0: all before it
};

struct GptWeights {
    bool bfloat16;    // else fp32
    bool exact_gelu;  // else its approximation with tanh
    float eps;
    std::int64_t vocab, context, heads, width, hidden;  // hidden: of the MLP
    const void *wte, *wpe;                              // [vocab, C], [context, C]
    std::vector<BlockWeights> blocks;
    NormWeights ln_f;
    const void* head;  // [vocab, C]
};

// Token i is of row[i] of the cache and stands at position[i].
struct StepRows {
    const std::int64_t *token, *row, *position;
    std::int64_t count;
};

// The kernels of an instruction set ("avx512", "avx2", "portable") for one type of weights; nullptr where the processor
// has not got it. "" is the best that it has.
const StepKernels* step_kernels(const char* instructions, bool bfloat16);

// Writes logits [count, vocab]; keys and values [L, cache_rows, context, H, D] gain one position of each row.
void gpt_step(const GptWeights& model, const StepKernels& kernels, int threads, void* keys, void* values,
              std::int64_t cache_rows, const StepRows& rows, float* logits);

}  // namespace gptfast
