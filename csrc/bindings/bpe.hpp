// Binds gptfast._core.BPE.
#pragma once

#include <pybind11/pybind11.h>

void bind_bpe(pybind11::module_& m);
