// The patterns by the names that Python gives them.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "core/pattern.hpp"

inline gptfast::Pattern pattern_named(const std::string& name) {
    if (name == "gpt2") return gptfast::Pattern::kGpt2;
    if (name == "cl100k") return gptfast::Pattern::kCl100k;
    if (name == "o200k") return gptfast::Pattern::kO200k;
    if (name.empty()) return gptfast::Pattern::kNone;
    throw pybind11::value_error("unknown pattern '" + name + "'; known: gpt2, cl100k, o200k, and '' for none");
}
