"""Weights of GPT-2 models in every format in which they are kept: see docs/weights.md.

tensors.py                        names, shapes and content of the tensors in a file
layout.py                         from a family's names and shapes to gptfast's, and back
huggingface.py, nanogpt.py,       the families
book.py, tensorflow.py
build.py                          a model from tensors, in little more memory than it needs itself
source.py                         `load_weights`: which of these a source is
"""

from .book import to_book
from .huggingface import from_hf, read_config, save, to_hf
from .nanogpt import to_nanogpt
from .source import load_weights

__all__ = ["from_hf", "load_weights", "read_config", "save", "to_book", "to_hf", "to_nanogpt"]
