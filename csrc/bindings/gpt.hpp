// Binds gptfast._core.GptStep.
#pragma once

#include <pybind11/pybind11.h>

void bind_gpt(pybind11::module_& m);
