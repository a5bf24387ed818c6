"""`gptfast pretrain`: prepared tokens to a trained model, in a run folder."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from .errors import GptfastError
from .files import read_json, write_json
from .settings import parse, to_flags


@dataclass(frozen=True)
class PretrainConfig:
    """Train a GPT on prepared tokens. `--config FILE` reads any of these from a YAML or TOML recipe; flags overrule
    it.
    """

    data: tuple[Path, ...]
    """Folders from `gptfast data prepare`, or .bin files of nanoGPT or llm.c; several are mixed by --weights."""
    out: Path
    """The run folder to make: config.json, metrics.jsonl, loss.png, samples/, checkpoints/."""
    resume: bool = False
    """Go on from the last checkpoint in --out, with its settings unless given anew."""

    preset: str = "gpt2"
    """The model's shape: tiny, gpt2, gpt2-medium, gpt2-large, gpt2-xl, gpt3-small ... gpt3-175b; the next flags change
    it.
    """
    n_layer: int | None = None
    """Blocks."""
    n_head: int | None = None
    """Attention heads of a block."""
    n_embd: int | None = None
    """Width."""
    context_length: int | None = None
    """Tokens that the model sees at once (T)."""
    dropout: float | None = None
    """Probability of dropping an activation."""
    bias: bool | None = None
    """Biases in Linear and LayerNorm."""
    qkv_bias: bool | None = None
    """Biases of the query, key and value projections."""
    tie_weights: bool | None = None
    """One matrix for token embedding and output head."""
    embd_std: float | None = None
    """Standard deviation of the embeddings' initialisation."""
    window: tuple[int | None, ...] | None = None
    """Keys that a query sees, by layer, repeated over the layers; None is all."""

    weights: tuple[float, ...] = ()
    """How often each of --data is drawn, in any unit; by default by size."""
    sampling: Literal["random", "window", "packed"] = "random"
    """random: windows at random offsets; window: a sliding window, each once an epoch; packed: whole documents in
    random order, joined, with attention kept inside each.
    """
    stride: int | None = None
    """Step of the sliding window; its length by default."""

    steps: int = 2000
    """Optimizer steps."""
    epochs: float | None = None
    """Passes over the data instead of --steps."""
    batch_size: int = 12
    """Sequences in a batch (B)."""
    grad_accum: int = 1
    """Batches in a step."""

    lr: float = 6e-4
    """Peak learning rate."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """After the warm-up: half a cosine; constant with a linear end (WSD); or constant."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    lr_floor: float = 0.1
    """The last learning rate as a share of the peak."""
    wsd_decay: float = 0.2
    """The share of all steps in which WSD decays."""
    weight_decay: float = 0.1
    """AdamW's decay, of matrices only."""
    beta1: float = 0.9
    """AdamW's decay rate of the first moment."""
    beta2: float = 0.95
    """AdamW's decay rate of the second moment."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto takes bf16 where the hardware multiplies matrices in it."""
    compile: bool = False
    """Compile the model with torch.compile: a slow first step, faster ones after."""
    seed: int = 1337
    """Of the weights, the order of the data, dropout and samples."""

    eval_every: int = 250
    """Steps between evaluations of train and validation loss."""
    eval_batches: int = 20
    """Batches of an evaluation of each; 0 takes all."""
    sample_every: int = 500
    """Steps between samples of text."""
    sample_prompt: str = "\n"
    """What the samples continue."""
    sample_tokens: int = 200
    """Tokens of a sample."""
    checkpoint_every: int = 500
    """Steps between checkpoints; each best validation loss is saved too."""
    keep: int = 3
    """Checkpoints kept, beside the best."""
    tensorboard: bool = False
    """Write TensorBoard files to OUT/tensorboard too."""

    def check(self) -> None:
        """Raise GptfastError for a setting that no training can have."""
        limits = {
            "above 0": ("steps", "epochs", "batch_size", "grad_accum", "stride", "lr", "eval_every", "sample_every",
                        "checkpoint_every", "keep", "embd_std"),
            "at least 0": ("warmup_steps", "weight_decay", "grad_clip", "eval_batches", "sample_tokens", "seed"),
            "from 0 to 1": ("lr_floor", "wsd_decay"),
            "at least 0 and below 1": ("beta1", "beta2"),
        }  # fmt: skip
        hold = {
            "above 0": lambda x: 0 < x < float("inf"), "at least 0": lambda x: 0 <= x < 2**63,
            "from 0 to 1": lambda x: 0 <= x <= 1, "at least 0 and below 1": lambda x: 0 <= x < 1,
        }  # fmt: skip
        for words, names in limits.items():
            for name in names:
                value = getattr(self, name)
                if value is not None and not hold[words](value):  # also refuses NaN
                    raise GptfastError(f"--{name.replace('_', '-')} is {value}; it must be {words}")
        if not self.data:
            raise GptfastError("--data names nothing to train on; give a folder from `gptfast data prepare`")
        if self.weights and len(self.weights) != len(self.data):
            raise GptfastError(f"--weights has {len(self.weights)} numbers for {len(self.data)} of --data")


MODEL_FIELDS = (
    "n_layer",
    "n_head",
    "n_embd",
    "context_length",
    "dropout",
    "bias",
    "qkv_bias",
    "tie_weights",
    "embd_std",
    "window",
)
# What fixes the order of the data: the position of a checkpoint means nothing under another value.
ORDER_FIELDS = ("data", "weights", "sampling", "stride", "batch_size", "seed")


def to_json(config: PretrainConfig) -> dict[str, Any]:
    values = asdict(config)
    values["data"] = [str(path.resolve()) for path in config.data]  # a run is resumed from any folder
    values["out"] = str(config.out.resolve())
    values["weights"] = list(config.weights)
    return values


def read_config(argv: list[str]) -> PretrainConfig:
    """The settings of `argv`; with --resume, over those of the run that is resumed."""
    earlier: list[str] = []
    if "--resume" in argv:
        outs = [argv[i + 1] for i, flag in enumerate(argv[:-1]) if flag == "--out"]
        outs += [flag.removeprefix("--out=") for flag in argv if flag.startswith("--out=")]
        if not outs or not (Path(outs[-1]) / "config.json").is_file():
            raise GptfastError("--resume needs --out RUN, a folder with a run's config.json")
        saved = read_json(Path(outs[-1]) / "config.json")
        if "model_type" in saved:
            raise GptfastError(f"{outs[-1]} is a model folder; --resume needs the run folder that holds checkpoints/")
        earlier = to_flags(PretrainConfig, saved, f"{outs[-1]}/config.json")
    config = parse(PretrainConfig, argv, "gptfast pretrain", earlier)
    if config.resume and not earlier:
        raise GptfastError("resume belongs on the command line and not in a recipe: --resume --out RUN")
    return config


def make_sampler(config: PretrainConfig, sets: list[Any], context: int) -> Any:
    """One sampler over `sets`, mixed by weight where there are several."""
    from .data import Mixture, PackedDocuments, RandomOffsets, SlidingWindow

    def one(tokens: Any) -> Any:
        if config.sampling == "window":
            return SlidingWindow(tokens, context, context if config.stride is None else config.stride, config.seed)
        return (PackedDocuments if config.sampling == "packed" else RandomOffsets)(tokens, context, config.seed)

    if len(sets) == 1:
        return one(sets[0])
    return Mixture(
        [(one(s), w) for s, w in zip(sets, config.weights or [len(s) for s in sets], strict=True)], config.seed
    )


def run(config: PretrainConfig) -> None:
    """Train as `config` says. Raises GptfastError for anything the user can mend."""
    config.check()
    import torch

    from .checkpoint import checkpoints, read_state
    from .config import GPTConfig
    from .data import Mixture, NoSuchSplit, open_tokens
    from .data.tokens import VOCABULARY
    from .display import Display
    from .machine import choose_device
    from .model import GPT
    from .precision import choose
    from .tokenizer import ENCODING_NAMES, get_encoding
    from .train import Trainer

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise GptfastError("this version trains in one process; start it without torchrun")
    if not config.resume and config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        what = "not empty" if config.out.is_dir() else "a file"
        raise GptfastError(f"{config.out} is {what}; choose another --out, or go on with --resume")
    display = Display()
    sets = [open_tokens(path, "train") for path in config.data]
    encodings = {name: get_encoding(name) for name in dict.fromkeys(s.encoding_name for s in sets)}
    if len({e.hash for e in encodings.values()}) > 1:
        mixed = ", ".join(sorted(encodings))
        raise GptfastError(f"--data mixes the tokenizers {mixed}; prepare all with one --encoding")
    encoding = encodings[sets[0].encoding_name]
    for s in sets:
        s.encoding_name = sets[0].encoding_name  # each folder has its own copy of a vocabulary that is not published
    published = encoding.name in ENCODING_NAMES
    changes = {name: getattr(config, name) for name in MODEL_FIELDS if getattr(config, name) is not None}
    model_config = GPTConfig.preset(config.preset, vocab_size=encoding.n_vocab, **changes)
    sampler = make_sampler(config, sets, model_config.context_length)
    if config.epochs is not None:
        rows = config.epochs * len(sampler)
        steps = max(1, round(rows / (config.batch_size * config.grad_accum)))
        config = PretrainConfig(**{**asdict(config), "steps": steps, "epochs": None})
    shares = sampler.realised if isinstance(sampler, Mixture) else [1.0]
    evaluation = {"train": list(zip(sets, shares, strict=True)), "val": []}
    for path, share in zip(config.data, shares, strict=True):
        try:
            evaluation["val"].append((open_tokens(path, "val"), share))
        except NoSuchSplit as error:
            display.note(f"no validation loss of {path}: {error}")

    state: dict[str, Any] = {
        "step": 0, "position": 0, "best": None,
        "encoding": encoding.name if published else VOCABULARY, "encoding_hash": encoding.hash,
        "data": [s.fingerprint for s in sets], "order": {name: to_json(config)[name] for name in ORDER_FIELDS[1:]},
    }  # fmt: skip
    folder = max(checkpoints(config.out).items(), default=(0, None))[1]
    if config.resume:
        if folder is None:
            raise GptfastError(f"{config.out} has no checkpoint to resume; start it anew in another --out")
        state = _resumed_state(folder, read_state(folder), state, model_config)
        if state["step"] >= config.steps:
            display.note(f"{config.out} is already at step {state['step']} of {config.steps}; give more --steps")
            return

    device = choose_device(config.device)
    precision = choose(device, config.precision)
    torch.manual_seed(config.seed)
    model = GPT(model_config).to(device)
    display.note(
        f"{model.num_parameters():,} parameters on {device} in {precision.name} ({precision.reason}); "
        f"{sum(map(len, sets)):,} training tokens, {config.steps:,} steps of "
        f"{config.batch_size * config.grad_accum * model_config.context_length:,}"
    )
    if len(sets) > 1:
        mixed = ", ".join(f"{path} {share:.1%}" for path, share in zip(config.data, shares, strict=True))
        display.note(f"realised mixture: {mixed}")
    trainer = Trainer(config, model, sampler, evaluation, encoding, precision, state, display)
    if config.resume and folder is not None:
        trainer.resume(folder)
        display.note(f"resumed from {folder}")
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GptfastError(f"cannot make {config.out}: {error.strerror}; choose another --out") from None
    write_json(config.out / "config.json", {**to_json(config), "resume": False})
    if not published:
        encoding.save(config.out / VOCABULARY)
    trainer.fit()
    display.note(
        f"run folder: {config.out}  (loss.png, samples/, checkpoints/; `gptfast generate {config.out}` writes more)"
    )


def _resumed_state(
    folder: Path, saved: dict[str, Any] | None, fresh: dict[str, Any], model_config: Any
) -> dict[str, Any]:
    """The checkpoint's state, once it is sure that it belongs to these settings and this data."""
    from .weights import read_config as read_model_config

    if saved is None:
        raise GptfastError(f"{folder} has no state.json, so it is a model but no training checkpoint")
    if (saved["encoding"], saved["encoding_hash"]) != (fresh["encoding"], fresh["encoding_hash"]):
        raise GptfastError(
            f"{folder} was trained with the tokenizer {saved['encoding']!r}, the data is in {fresh['encoding']!r}; "
            "resume with the data it was trained on"
        )
    before = read_model_config(folder / "config.json").to_dict()
    for name, value in model_config.to_dict().items():
        if before[name] != value and name != "dropout":
            raise GptfastError(
                f"{folder} has {name} = {before[name]}, these settings {value}; a resumed model keeps its shape"
            )
    if saved["data"] != fresh["data"]:
        raise GptfastError(
            f"the tokens in --data are not those that {folder} was trained on; resume with the same data"
        )
    for name, value in fresh["order"].items():
        if saved["order"][name] != value:
            raise GptfastError(
                f"{folder} was trained with {name} = {saved['order'][name]}, these settings have {value}; "
                "its place in the data needs the same"
            )
    return {**fresh, "step": saved["step"], "position": saved["position"], "best": saved["best"]}


def main(argv: list[str]) -> None:
    run(read_config(argv))
