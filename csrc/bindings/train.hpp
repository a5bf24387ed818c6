// Binds gptfast._core.WordCounter and train_bpe.
#pragma once

#include <pybind11/pybind11.h>

void bind_train(pybind11::module_& m);
