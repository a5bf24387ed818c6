"""`gptfast finetune-classifier`: labelled text to a classifier, in a run folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ..errors import GptfastError
from ..settings import parse
from .fit import FitConfig, FitDisplay, fit

if TYPE_CHECKING:
    from ..model import GPT
    from ..tokenizer import Encoding
    from .batches import Collate
    from .classifier import Classifier
    from .labelled import Labelled

SHAPE = ("preset", "n_layer", "n_head", "n_embd", "context_length", "vocab_size")


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(FitConfig):
    """Train a GPT to classify text. `--config FILE` reads any of these from a YAML or TOML recipe; flags overrule
    it.
    """

    data: Annotated[Path, tyro.conf.Positional]
    """Labelled text: .csv, .tsv (in which quotes are text), .jsonl or .parquet."""
    out: Path
    """The run folder to make: best/ (the model), results.json, metrics.jsonl, test.jsonl, plots."""
    text_column: str | None = None
    """Name or number of the column of texts; found by usual names otherwise."""
    label_column: str | None = None
    """The same of the classes."""
    balance: Literal["none", "undersample", "weights"] = "none"
    """undersample: as many texts of each class as of the rarest, before the split; weights: in the loss."""
    split: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of training, validation and test, of each class."""

    init: str | None = None
    """Pretrained weights: a run of `gptfast pretrain`, a model folder, or anything that gptfast.load_weights reads.
    Without, the model is new, of the shape that the next flags say.
    """
    encoding: str | None = None
    """Tokenizer, a name or a path; by default that of --init, or GPT-2's."""
    vocab_size: int | None = None
    """Of a new model: learn a vocabulary of this size from the training texts."""
    preset: str = "tiny"
    """Of a new model: tiny, gpt2, ...; the next flags change it."""
    n_layer: int | None = None
    """Blocks."""
    n_head: int | None = None
    """Attention heads of a block."""
    n_embd: int | None = None
    """Width."""
    context_length: int | None = None
    """Tokens that the model sees at once."""
    dropout: float | None = None
    """Probability of dropping an activation, of a new model or that of --init."""

    layers: Literal["head", "last-block", "all", "lora"] = "all"
    """What trains: the new head; also the last block and final LayerNorm; everything; or the head and LoRA."""
    lora_rank: int = 8
    """LoRA: rank of the update of each matrix."""
    lora_alpha: float = 16
    """LoRA: the update is scaled by alpha / rank."""
    lora_dropout: float = 0.0
    """LoRA: dropout of what goes into the update."""
    lora_targets: tuple[str, ...] = ("c_attn",)
    """LoRA: which layers of the blocks: c_attn, attn.c_proj, c_fc, mlp.c_proj."""
    position: Literal["last-token", "end"] = "last-token"
    """Which token classifies: the text's last, or the last position after all texts are padded to the same length."""
    max_length: int | None = None
    """Tokens of a text that are read, its beginning; by default the context, and with `end` the longest text's."""
    batching: Literal["pad", "pack"] = "pad"
    """Texts of similar length, padded to the longest of a batch; or several packed into a row."""
    monitor: Literal["f1", "loss"] = "f1"
    """What chooses the best model: the highest macro F1 or the lowest loss, on validation."""

    batch_size: int = 16
    """Texts in a batch."""

    def check(self) -> None:
        """Raise GptfastError for settings that no training can have, or that contradict each other."""
        super().check()
        if not all(0 < share < 1 for share in self.split):
            raise GptfastError(f"--split is {self.split}; each of the three shares must be above 0")
        if self.batching == "pack" and self.position == "end":
            raise GptfastError("packed texts have no padding, so none at the end; use --position last-token")
        if self.max_length is not None and self.max_length < 1:
            raise GptfastError(f"--max-length is {self.max_length}; it must be at least 1")
        defaults = {name: getattr(type(self), name) for name in SHAPE}
        given = [name for name, value in defaults.items() if getattr(self, name) != value]
        if self.init is not None and given:
            raise GptfastError(f"--{given[0].replace('_', '-')} is of a new model; leave it out, or --init")
        if self.encoding is not None and self.vocab_size is not None:
            raise GptfastError("--vocab-size learns a vocabulary, --encoding names one; give one of them")


def run(config: ClassifierConfig) -> dict[str, Any]:
    """Train as `config` says; returns what results.json holds. Raises GptfastError for what the user can mend."""
    config.check()
    import numpy as np
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F

    from ..files import make_folder, write_json
    from ..lora import LoRAConfig
    from ..machine import choose_device
    from ..precision import choose
    from .batches import Batch, batches
    from .classifier import Classifier
    from .metrics import scores

    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise GptfastError(f"{config.out} is {'not empty' if config.out.is_dir() else 'a file'}; choose another --out")
    display, device = FitDisplay(), choose_device(config.device)
    splits = _splits(config, display)
    train, val = splits["train"], splits["val"]
    torch.manual_seed(config.seed)
    body, encoding = _body(config, train)
    model = _classifier(config, body, encoding, train).to(device)
    lora = LoRAConfig(config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets)
    model.train_only(config.layers, lora)
    encoded = {name: model.encode(encoding, part.texts) for name, part in splits.items()}
    ids = {name: tokens for name, (tokens, _) in encoded.items()}
    cut = sum(n for _, n in encoded.values())
    if cut:
        display.note(f"{cut:,} texts are longer than {model.length} tokens; their beginning is read")
    collate, padding = _collate(config, model, ids["train"], display)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    precision = choose(device, config.precision)
    display.note(
        f"{trained:,} of {total:,} parameters train ({config.layers}) on {device} in {precision.name} "
        f"({precision.reason})"
    )

    targets = torch.from_numpy(train.labels).to(device)
    weights = torch.tensor(train.class_weights(), dtype=torch.float32, device=device)
    watched = np.random.default_rng(config.seed).permutation(len(train))[: len(val)]  # of training, as many as of val

    def epoch(n: int) -> Iterable[Batch]:
        return batches(ids["train"], config.batch_size, collate, np.random.default_rng([config.seed, n]))

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        assert isinstance(model, Classifier)
        weight = weights if config.balance == "weights" else None
        target = targets[torch.from_numpy(batch.texts).to(device)]
        return F.cross_entropy(model.on(batch), target, weight, reduction="sum"), len(batch.texts)

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, Classifier)
        of_train = scores(model.probabilities([ids["train"][i] for i in watched]), train.labels[watched], train.names)
        of_val = scores(model.probabilities(ids["val"]), val.labels, train.names)
        return {
            "train_loss": of_train["loss"], "train_accuracy": of_train["accuracy"],
            "val_loss": of_val["loss"], "val_accuracy": of_val["accuracy"], "val_f1": of_val["macro_f1"],
        }  # fmt: skip

    make_folder(config.out)
    paths = {"data": str(config.data.resolve()), "out": str(config.out.resolve())}  # used from any folder
    write_json(config.out / "config.json", {"command": "finetune-classifier"} | asdict(config) | paths)
    fitted = fit(
        model, config, config.out, epoch=epoch, loss=loss, evaluate=evaluate,
        steps_per_epoch=-(-len(train) // (config.batch_size * config.grad_accum)),
        monitor=f"val_{config.monitor}", higher_is_better=config.monitor == "f1",
        save=lambda folder: model.save(folder, encoding),
    )  # fmt: skip
    facts = {"trained_parameters": trained, "parameters": total, "truncated": cut, "padding": padding, "fit": fitted}
    return _report(config, splits, ids, facts, display)


def _splits(config: ClassifierConfig, display: FitDisplay) -> dict[str, Labelled]:
    """The data by "train", "val" and "test", balanced as asked."""
    from .labelled import read_labelled

    data = read_labelled(config.data, config.text_column, config.label_column, display.note)
    display.note(data.describe())
    if config.balance == "undersample":
        data = data.undersampled(config.seed)
        display.note(f"undersampled to {data.describe()}")
    splits = dict(zip(("train", "val", "test"), data.split(config.split, config.seed), strict=True))
    display.note("; ".join(f"{name}: {part.describe()}" for name, part in splits.items()))
    trained = set(splits["train"].texts)
    if known := sum(text in trained for text in splits["test"].texts):
        display.note(f"{known:,} test texts are in the training split too, word for word: the data has them twice")
    return splits


def _body(config: ClassifierConfig, train: Labelled) -> tuple[GPT, Encoding]:
    """The GPT to train, new or of --init, and its tokenizer."""
    from ..config import GPTConfig
    from ..generate import load_for_generation
    from ..model import GPT, Attention, LayerNorm
    from ..tokenizer import Encoding, get_encoding

    if config.init is None:
        if config.vocab_size is not None:
            encoding = Encoding.train(train.texts, config.vocab_size)
        else:
            encoding = get_encoding(config.encoding or "gpt2")
        names = ("n_layer", "n_head", "n_embd", "context_length", "dropout")
        changes = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
        return GPT(GPTConfig.preset(config.preset, vocab_size=encoding.n_vocab, **changes)), encoding
    body, encoding = load_for_generation(Path(config.init).expanduser(), encoding=config.encoding, device="cpu")
    body.float()
    if config.dropout is not None:
        body.config = replace(body.config, dropout=config.dropout)  # refuses what is no probability
        for module in body.modules():
            if isinstance(module, (Attention, LayerNorm)):
                module.dropout = config.dropout
    return body, encoding


def _classifier(config: ClassifierConfig, body: GPT, encoding: Encoding, train: Labelled) -> Classifier:
    from ..tokenizer import END_OF_TEXT
    from .classifier import Classifier

    if END_OF_TEXT not in encoding.special_tokens_set:
        raise GptfastError(f"the encoding {encoding.name!r} has no {END_OF_TEXT}, which fills short rows; use another")
    context = body.config.context_length
    if config.max_length is not None and config.max_length > context:
        raise GptfastError(f"--max-length is {config.max_length}, beyond the model's context of {context} tokens")
    length = config.max_length
    if length is None and config.position == "end":
        length = min(context, max(len(encoding.encode_ordinary(text)) for text in train.texts))
    return Classifier(body, train.names, encoding.eot_token, length, config.position)


def _collate(
    config: ClassifierConfig, model: Classifier, ids: list[list[int]], display: FitDisplay
) -> tuple[Collate, dict[str, float]]:
    """How texts become batches, and the share of padding that each way has."""
    from .batches import packed, padding_share

    ways = {"pad": model.collate()}
    if config.position == "last-token":
        ways["pack"] = packed(model.pad_id, model.body.config.context_length)
    padding = {name: padding_share(ids, config.batch_size, way, config.seed) for name, way in ways.items()}
    shares = ", ".join(f"{share:.1%} with {name}" for name, share in padding.items())
    display.note(f"batching: {config.batching}; of the tokens are padding: {shares}")
    return ways[config.batching], padding


def _report(
    config: ClassifierConfig, splits: dict[str, Labelled], ids: dict[str, list[list[int]]], facts: dict[str, Any],
    display: FitDisplay,
) -> dict[str, Any]:  # fmt: skip
    """What the best model makes of every split: results.json, test.jsonl, plots, tables."""
    from ..files import atomic_write, write_json
    from ..machine import choose_device
    from ..report import read_metrics
    from .classifier import Classifier
    from .metrics import draw, scores

    best, _ = Classifier.load(config.out)
    best.to(choose_device(config.device))
    test = splits["test"]
    probabilities = {name: best.probabilities(tokens) for name, tokens in ids.items()}
    results: dict[str, Any] = {n: scores(p, splits[n].labels, best.names) for n, p in probabilities.items()}
    results |= {"majority_accuracy": float(test.counts.max() / len(test)), **facts}
    write_json(config.out / "results.json", results)
    with atomic_write(config.out / "test.jsonl", "w") as file:
        file.writelines(_predictions(test, probabilities["test"]))
    _show(display, results, best.names)
    pictures = draw(config.out, read_metrics(config.out / "metrics.jsonl"), results["test"], config.out.name)
    if not pictures:
        display.note("no plots: matplotlib is not installed (pip install matplotlib)")
    display.note(
        f"run folder: {config.out}  ({', '.join(['best/', 'results.json', 'test.jsonl', *pictures])}; "
        f'`gptfast classify {config.out} "text"` uses it)'
    )
    return results


def _predictions(test: Labelled, p: Any) -> Iterable[str]:
    """Lines of test.jsonl: each test text, its label, the predicted one, and the probability of each class."""
    import json

    for text, label, row in zip(test.texts, test.labels, p, strict=True):
        record = {
            "text": text, "label": test.names[label], "predicted": test.names[row.argmax()],
            "probabilities": {name: round(float(x), 6) for name, x in zip(test.names, row, strict=True)},
        }  # fmt: skip
        yield json.dumps(record, ensure_ascii=False) + "\n"


def _show(display: FitDisplay, results: dict[str, Any], names: list[str]) -> None:
    """The table of splits, and of the test split its classes and confusion matrix."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="the best model", title_justify="left")
    of_second = (f"F1 of {escape(names[1])}",) if len(names) == 2 else ()
    for column in ("", "texts", "loss", "accuracy", "macro F1", *of_second):
        table.add_column(column, justify="right" if column else "left")
    for split in ("train", "val", "test"):
        s = results[split]
        f1 = [f"{s['f1']:.4f}"] if len(names) == 2 else []
        table.add_row(split, f"{s['n']:,}", f"{s['loss']:.4f}", f"{s['accuracy']:.2%}", f"{s['macro_f1']:.4f}", *f1)
    display.console.print(table)
    test = results["test"]
    if len(names) <= 12:
        table = Table(title="test: actual class by row, predicted by column", title_justify="left")
        for column in ("", *map(escape, names), "precision", "recall", "F1"):
            table.add_column(column, justify="right" if column else "left")
        for name, row in zip(names, test["confusion"], strict=True):
            c = test["classes"][name]
            table.add_row(
                escape(name), *(f"{n:,}" for n in row), *(f"{c[key]:.4f}" for key in ("precision", "recall", "f1"))
            )
        display.console.print(table)
    fitted = results["fit"]
    stopped = f", stopped by {fitted['stopped']}" if fitted["stopped"] else ""
    display.note(
        f"best after epoch {fitted['best']['epoch']:.2f} of {fitted['epochs']:.2f}{stopped}, {fitted['seconds']:.0f} "
        f"s; calibration error {test['calibration_error']:.4f}; always the commonest class: "
        f"{results['majority_accuracy']:.2%} of the test texts"
    )


def main(argv: list[str]) -> None:
    run(parse(ClassifierConfig, argv, "gptfast finetune-classifier"))
