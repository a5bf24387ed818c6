"""`gptfast <command>`: finds the command's module, and turns what the user can mend into one line."""

from __future__ import annotations

import importlib
import os
import sys

from . import __version__
from .errors import GptfastError

COMMANDS = {  # the module, or module:function where it is not `main`
    "data prepare": ("gptfast.data.prepare", "turn text into token shards"),
    "tokenizer train": ("gptfast.tokenizer.cli:train", "learn a vocabulary from text"),
    "tokenizer encode": ("gptfast.tokenizer.cli:encode", "text to token ids"),
    "tokenizer decode": ("gptfast.tokenizer.cli:decode", "token ids to text"),
    "tokenizer count": ("gptfast.tokenizer.cli:count", "how many tokens texts have"),
    "tokenizer bench": ("gptfast.tokenizer.bench", "how fast a text is encoded, beside other tokenizers"),
    "pretrain": ("gptfast.pretrain", "train a GPT on prepared tokens"),
    "finetune-classifier": ("gptfast.finetune.classifier_cli", "train a text classifier on labelled text"),
    "finetune-instruct": ("gptfast.finetune.instruct", "teach a pretrained GPT to follow instructions"),
    "finetune-dpo": ("gptfast.finetune.dpo", "teach it which of two responses is preferred"),
    "classify": ("gptfast.finetune.classify_cli", "classify texts with a trained classifier"),
    "evaluate": ("gptfast.evaluate.cli", "how good a model is: perplexity, HellaSwag, LAMBADA, few-shot, a judge"),
    "generate": ("gptfast.generate", "continue a prompt with a trained model"),
    "chat": ("gptfast.chat", "talk to a trained model in the terminal"),
    "serve": ("gptfast.serve.command", "OpenAI's HTTP interface and a chat page for a trained model"),
    "weights convert": ("gptfast.weights.cli:convert", "write weights for transformers, nanoGPT or the book"),
    "weights inspect": ("gptfast.weights.cli:inspect", "what weights are, tensor by tensor"),
    "weights download": ("gptfast.weights.cli:download", "OpenAI's GPT-2, by size"),
    "demo": ("gptfast.demo", "prepare, pretrain and sample in three minutes"),
    "bench": ("gptfast.benchmarks.command", "how fast everything is here, beside other implementations"),
    "doctor": ("gptfast.doctor", "what this machine has, and what mends what it lacks"),
}


def usage(group: str = "") -> str:
    """All commands, or those of a group: "weights" of "weights convert"."""
    command = f"{group} <command>" if group else "<command>"
    lines = [
        f"gptfast {__version__}: the GPT-2 path in PyTorch, from raw text to a trained model",
        "",
        f"usage: gptfast {command} [flags]",
        "",
    ]
    lines += [f"  {name:<21}{text}" for name, (_, text) in COMMANDS.items() if not group or name.split()[0] == group]
    return "\n".join([*lines, "", f"`gptfast {command} --help` lists its flags."])


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit status: 0, or 2 for what the user can mend."""
    args = sys.argv[1:] if argv is None else argv
    if args and args[0] in ("--version", "-V"):
        print(f"gptfast {__version__}")
        return 0
    for words in (2, 1):
        name = " ".join(args[:words])
        if name in COMMANDS:
            try:
                module, _, function = COMMANDS[name][0].partition(":")
                try:
                    return getattr(importlib.import_module(module), function or "main")(args[words:]) or 0
                finally:
                    sys.stdout.flush()  # a reader that has gone is met here, not when the interpreter ends
            except GptfastError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 141
            except KeyboardInterrupt:
                print("stopped", file=sys.stderr)
                return 130
    group = args[0] if args and any(name.startswith(f"{args[0]} ") for name in COMMANDS) else ""
    rest = args[1:] if group else args
    if not rest or rest[0] in ("-h", "--help", "help"):
        print(usage(group))
        return 0
    import difflib

    said = " ".join(args[:2] if group else args[:1])
    near = difflib.get_close_matches(" ".join(args[:2]), COMMANDS, n=1, cutoff=0.4)
    hint = f"; did you mean `gptfast {near[0]}`?" if near else ""
    print(f"error: no command {said!r}{hint}\n\n{usage(group)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
