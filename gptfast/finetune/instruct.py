"""`gptfast finetune-instruct`: a pretrained GPT learns to follow instructions, in a run folder.

The loss is the mean cross entropy over the tokens of the responses and the end-of-text after each (Ouyang et al. 2022,
section 3.5; the prompt masked as in Alpaca's trainer), or over all tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ..checkpoint import BEST
from ..errors import GptfastError
from ..settings import parse
from .fit import FitConfig

if TYPE_CHECKING:
    from rich.table import Table

    from ..model import GPT
    from .fit import FitDisplay
    from .instruct_data import Tokens
    from .templates import Template


@dataclass(frozen=True, kw_only=True)
class TuneConfig(FitConfig):
    """What `finetune-instruct` and `finetune-dpo` have in common."""

    data: Annotated[Path, tyro.conf.Positional]
    """Examples: .json (a list) or .jsonl (an object a line); docs/instruct.md has the formats."""
    init: str
    """What to start from: a run, or any weights that gptfast.load_weights reads: a folder, a file, gpt2."""
    out: Path
    """The run folder to make: best/ (the model), metrics.jsonl, loss.png, test.json, samples/, adapter/ with LoRA."""
    encoding: str | None = None
    """Tokenizer, a name or a path; by default that of --init, or GPT-2's."""
    template: str | None = None
    """How an example is written: alpaca, phi3, a file, or a text with {instruction}, {input} and {output}; by default
    as --init was fine-tuned with, or alpaca.
    """
    split: Literal["seed", "file"] = "seed"
    """Which 85 % train, 10 % test and 5 % validate: drawn with --seed, or in the order of the file."""
    long: Literal["truncate", "drop"] = "truncate"
    """What is done with examples that are longer than the model's context."""

    lora_rank: int = 0
    """LoRA: rank of the update of each matrix; 0 trains all parameters."""
    lora_alpha: float = 16
    """LoRA: the update is scaled by alpha / rank."""
    lora_dropout: float = 0.0
    """LoRA: dropout of what goes into the update."""
    lora_targets: tuple[str, ...] = ("c_attn",)
    """LoRA: which layers of the blocks: c_attn, attn.c_proj, c_fc, mlp.c_proj."""

    samples: int = 3
    """Validation examples that the model answers at each evaluation, in samples/ and on the screen."""
    sample_tokens: int = 80
    """Tokens of a sample at most."""

    def check(self) -> None:
        super().check()
        for name in ("lora_rank", "samples", "sample_tokens"):
            if getattr(self, name) < 0:
                raise GptfastError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 0")


@dataclass(frozen=True, kw_only=True)
class InstructConfig(TuneConfig):
    """Fine-tune a GPT on instructions and responses. `--config FILE` reads any of these from a YAML or TOML recipe;
    flags overrule it.
    """

    loss: Literal["response", "all"] = "response"
    """What is learned: the responses, or the prompts too."""
    padding: bool = False
    """Pad batches of examples of similar length, instead of packing a batch into one row without padding."""


class Start:
    """What a run begins with: the model of --init, with LoRA where asked, its tokenizer, and the template."""

    def __init__(self, config: TuneConfig, display: FitDisplay) -> None:
        import torch

        from ..checkpoint import find_checkpoint
        from ..generate import load_for_generation
        from ..lora import LoRAConfig, add_lora
        from ..machine import choose_device
        from ..precision import choose
        from ..tokenizer import END_OF_TEXT
        from .templates import TEMPLATES, Template

        out = config.out
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise GptfastError(f"{out} is {'not empty' if out.is_dir() else 'a file'}; choose another --out")
        self.config, self.display = config, display
        self.device = choose_device(config.device)
        self.source = find_checkpoint(Path(config.init).expanduser())
        named = Template.of(config.template) if config.template is not None else Template.load(self.source)
        self.template: Template = named or TEMPLATES["alpaca"]
        model, self.encoding = load_for_generation(self.source, encoding=config.encoding, device="cpu")
        self.model: GPT = model.float().to(self.device)
        self.context = self.model.config.context_length
        if END_OF_TEXT not in self.encoding.special_tokens_set:
            raise GptfastError(f"the encoding {self.encoding.name!r} has no {END_OF_TEXT}, which ends each response")
        torch.manual_seed(config.seed)
        if config.lora_rank:
            add_lora(
                self.model, LoRAConfig(config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets)
            )
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.precision = choose(self.device, config.precision)
        display.note(
            f"{trained:,} of {self.model.num_parameters():,} parameters train on {self.device} in "
            f"{self.precision.name} ({self.precision.reason}); template {self.template.name}"
        )

    def save(self, folder: Path) -> None:
        """Write the model in Hugging Face's layout, LoRA merged, with its tokenizer and template; the adapter is
        written to RUN/adapter.
        """
        from ..data.tokens import VOCABULARY
        from ..files import write_json
        from ..lora import merge_lora, save_lora, unmerge_lora
        from ..tokenizer import ENCODING_NAMES
        from .fit import atomic_folder

        merge_lora(self.model)
        try:
            self.model.save_pretrained(folder)
        finally:
            unmerge_lora(self.model)
        self.template.save(folder)
        published = self.encoding.name in ENCODING_NAMES
        if not published:
            self.encoding.save(folder / VOCABULARY)
        name = self.encoding.name if published else VOCABULARY
        state: dict[str, Any] = {"step": 0, "position": 0, "best": None, "data": [], "order": {}}  # of no pretraining
        write_json(folder / "state.json", {**state, "encoding": name, "encoding_hash": self.encoding.hash})
        if self.config.lora_rank:
            # PEFT opens it from any folder; a name on the hub stays one.
            base = str(self.source.resolve()) if self.source.exists() else self.config.init
            with atomic_folder(self.config.out / "adapter") as adapter:
                save_lora(self.model, adapter, base)

    def open(self, command: str, test: Sequence[Any]) -> None:
        """Make the run folder, with its settings and the examples that are kept for tests."""
        from ..files import make_folder, write_json

        config = self.config
        make_folder(config.out)
        paths = {"data": str(config.data.resolve()), "out": str(config.out.resolve())}  # used from any folder
        write_json(config.out / "config.json", {"command": command} | asdict(config) | paths)
        write_json(config.out / "test.json", list(test))

    def close(self, title: str) -> GPT:
        """Draw the losses; returns the best model."""
        from ..model import GPT
        from ..report import plot_losses, read_metrics

        rows = read_metrics(self.config.out / "metrics.jsonl")
        if not plot_losses(rows, self.config.out / "loss.png", title):
            self.display.note("no loss.png: matplotlib is not installed (pip install matplotlib)")
        return GPT.from_pretrained(self.config.out / BEST).to(self.device).eval()

    def sampler(self, examples: Sequence[Any]) -> Callable[[GPT], None]:
        """What answers the first few of `examples` at each evaluation, greedily, and writes and prints the answers."""
        from ..files import atomic_write, make_folder
        from .templates import conversation

        chosen = list(examples)[: self.config.samples]
        done = 0

        def answer_all(model: GPT) -> None:
            nonlocal done
            lines = []
            for example in chosen:
                turn = conversation(example)[1][-1]
                question = "\n".join(filter(None, (turn.instruction, turn.input)))
                reply = answer(model, self.encoding, self.template, example, self.config.sample_tokens)
                lines.append(f"> {question}\n{reply}\n")
            if chosen:
                make_folder(self.config.out / "samples")
                with atomic_write(self.config.out / "samples" / f"evaluation-{done:03d}.txt", "w") as file:
                    file.write("\n".join(lines))
                print("\n".join(lines))  # which the progress line makes room for
            done += 1

        return answer_all


def answer(model: GPT, encoding: Any, template: Template, example: Any, max_new_tokens: int) -> str:
    """The likeliest answer to an example, up to end-of-text, one of the template's stops, or the model's context."""
    from ..sampling import stream_text

    ids = encoding.encode_ordinary(template.prompt(example))
    new = max(0, min(max_new_tokens, model.config.context_length - len(ids)))
    return "".join(stream_text(model, encoding, ids, new, template.stops(), temperature=0)).strip()


def run(config: InstructConfig) -> dict[str, Any]:
    """Train as `config` says; returns what `fit` does. Raises GptfastError for what the user can mend."""
    config.check()
    import numpy as np
    from torch import Tensor, nn

    from ..model import GPT
    from .fit import FitDisplay, fit
    from .instruct_data import Batch, batches, every, fit_context, read_examples, target_losses, tokenise

    examples = read_examples(config.data)
    display = FitDisplay()
    start = Start(config, display)
    encoding, template = start.encoding, start.template
    tokens: list[Tokens] = every(examples, config.data, lambda e: tokenise(e, template, encoding, config.loss))
    parts = split_of(len(examples), config.split, config.seed)
    fitted = {name: fit_context([tokens[i] for i in part], start.context, config.long) for name, part in parts.items()}
    data = {name: part.examples for name, part in fitted.items()}
    describe(display, parts, fitted, start.context)
    sampled = np.random.default_rng(config.seed).permutation(len(data["train"]))[: max(1, len(data["val"]))]
    watched = [data["train"][i] for i in sampled]  # of training, as many as of validation
    sample = start.sampler([examples[i] for i in parts["val"]])

    def epoch(n: int) -> Iterable[Batch]:
        rng = np.random.default_rng([config.seed, n])
        return batches(data["train"], config.batch_size, not config.padding, rng)

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        assert isinstance(model, GPT)
        return target_losses(model, batch.to(start.device)), batch.n

    def mean(model: GPT, examples: Sequence[Tokens]) -> float:
        total = n = 0.0
        for batch in batches(examples, config.batch_size, not config.padding, None):
            total, n = total + target_losses(model, batch.to(start.device)).item(), n + batch.n
        return total / n

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, GPT)
        sample(model)
        return {"train_loss": mean(model, watched), "val_loss": mean(model, data["val"])}

    start.open("finetune-instruct", [examples[i] for i in parts["test"]])
    result = fit(
        start.model, config, config.out, epoch=epoch, loss=loss, evaluate=evaluate, save=start.save,
        steps_per_epoch=-(-len(data["train"]) // (config.batch_size * config.grad_accum)),
        monitor="val_loss", higher_is_better=False,
    )  # fmt: skip
    best = start.close(config.out.name)
    table = result_table(("examples", "targets", "loss", "perplexity"))
    for name in ("train", "val", "test"):
        if data[name]:
            value = mean_of(mean, best, data[name])
            targets = sum(t >= 0 for x in data[name] for t in x.targets)
            table.add_row(name, f"{len(data[name]):,}", f"{targets:,}", f"{value:.4f}", f"{np.exp(value):.2f}")
            result[f"{name}_loss"] = value
    finish(display, config, result, table)
    return result


def mean_of(mean: Callable[[GPT, Sequence[Tokens]], float], model: GPT, examples: Sequence[Tokens]) -> float:
    import torch

    with torch.no_grad():
        return mean(model, examples)


def split_of(n: int, how: Literal["seed", "file"], seed: int) -> dict[str, list[int]]:
    """Which of n examples are in "train", "test" and "val"."""
    from .instruct_data import split

    return dict(zip(("train", "test", "val"), split(n, seed if how == "seed" else None), strict=True))


def describe(display: FitDisplay, parts: dict[str, list[int]], fitted: dict[str, Any], context: int) -> None:
    """Say how many examples there are, and what became of those that are too long. Raises GptfastError where none is
    left to train on or to validate with.
    """
    display.note("; ".join(f"{name}: {len(part.examples):,} examples" for name, part in fitted.items()))
    cut, dropped = (sum(getattr(part, what) for part in fitted.values()) for what in ("cut", "dropped"))
    if cut:
        display.note(f"{cut:,} examples are longer than the context of {context} tokens and were cut there")
    if dropped:
        display.note(f"{dropped:,} examples were left out: too long for the context of {context} tokens")
    for name in ("train", "val"):
        if not fitted[name].examples:
            raise GptfastError(
                f"none of the {len(parts[name]):,} examples of the {name} part fits the context of {context} tokens; "
                "use a model with a longer one"
            )


def result_table(columns: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(title="the best model", title_justify="left")
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left")
    return table


def finish(display: FitDisplay, config: TuneConfig, result: dict[str, Any], table: Table) -> None:
    display.console.print(table)
    stopped = f", stopped by {result['stopped']}" if result["stopped"] else ""
    adapter = ", adapter/" if config.lora_rank else ""
    epoch = result["best"]["epoch"]
    display.note(f"best after epoch {epoch:.2f} of {result['epochs']:.2f}{stopped}, {result['seconds']:.0f} s")
    display.note(
        f"run folder: {config.out}  (best/{adapter}, loss.png, samples/, test.json; `gptfast chat {config.out}` "
        "talks to it)"
    )


def main(argv: list[str]) -> None:
    run(parse(InstructConfig, argv, "gptfast finetune-instruct"))
