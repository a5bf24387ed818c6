"""Registers gptfast's attention with transformers, now or as soon as transformers' models are imported.

transformers has no entry point for plugins, and importing it takes seconds that `import gptfast` must not. So the one
module that holds its attention functions is watched for: the finder here hands out that module's own loader, which
registers after it has run and then takes the finder away.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

WATCHED = "transformers.modeling_utils"


class _Finder:
    """A finder for `sys.meta_path` that asks those after it and adds `_register` to the loader that they name."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != WATCHED:
            return None
        others = (finder for finder in list(sys.meta_path) if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is None or spec.loader is None:
            return spec
        loader, run = spec.loader, spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            del loader.exec_module  # the class's own again
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _register()

        loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


def _register() -> None:
    try:
        from . import hf_attention

        hf_attention.register()
    except Exception as error:  # the import of transformers goes on: nobody may have asked for this
        version = getattr(sys.modules.get("transformers"), "__version__", "of an unknown version")
        warnings.warn(
            f'attn_implementation="gptfast" is not available: transformers {version} is not one that gptfast knows '
            f"({type(error).__name__}: {error}); 4.57.1 and later are",
            RuntimeWarning,
            stacklevel=2,
        )


def install() -> None:
    """Registers at once where transformers' models are imported, else when they are."""
    if WATCHED in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
