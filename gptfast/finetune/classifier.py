"""GPT-2 with a classification head: the model of transformers' GPT2ForSequenceClassification, in its format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint import BEST, find_checkpoint
from ..data.tokens import VOCABULARY
from ..errors import GptfastError
from ..files import atomic_path, make_folder, read_json, write_json
from ..lora import LoRAConfig, LoRALinear, add_lora, merge_lora, unmerge_lora
from ..model import GPT
from ..tokenizer import ENCODING_NAMES, Encoding, get_encoding
from ..weights.huggingface import config_values, to_hf
from ..weights.source import find
from ..weights.tensors import write_safetensors
from .batches import Batch, Collate, batches, padded

Layers = Literal["head", "last-block", "all", "lora"]
STATE = "state.json"  # in a model folder, as in a checkpoint: the tokenizer's name and hash


class Classifier(nn.Module):
    """body: its language-model head is not used, and if it is not tied it is let go. names: of the K classes.

    pad_id fills short rows. length: of the longest text in tokens, at most the body's context_length. position:
    "last-token" classifies by each text's last token; "end" fills every text to `length` and classifies by what is
    there, as the book does. The head is normal(0, 0.02), as transformers makes it.
    """

    def __init__(
        self, body: GPT, names: Sequence[str], pad_id: int, length: int | None = None,
        position: Literal["last-token", "end"] = "last-token",
    ) -> None:  # fmt: skip
        super().__init__()
        if not body.config.tie_weights:
            body.config = replace(body.config, tie_weights=True)
            body.lm_head.weight = body.wte.weight
        self.body, self.names, self.pad_id, self.position = body, list(names), pad_id, position
        self.length = length or body.config.context_length
        weight = body.wte.weight
        self.score = nn.Linear(body.config.n_embd, len(names), bias=False, device=weight.device, dtype=weight.dtype)
        nn.init.normal_(self.score.weight, std=0.02)

    def forward(
        self, idx: Tensor, last: Tensor, cu_seqlens: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """fp32 logits [N, K] of N texts in idx int64 [B, T].

        last int64: [B], the position in its row of the token that classifies; or with `cu_seqlens` and `positions`
        [B, T] of packed rows [N], over the flattened [B * T] positions.
        """
        x = self.body.hidden(idx, cu_seqlens, positions=positions).flatten(0, 1)  # [B * T, C]
        if cu_seqlens is None:
            last = last + torch.arange(len(idx), device=idx.device) * idx.shape[1]
        return self.score(x[last]).float()

    def on(self, batch: Batch) -> Tensor:
        """Logits fp32 [N, K] of a batch, in its order."""
        device = self.score.weight.device
        idx, last = batch.idx.to(device), batch.last.to(device)
        if batch.cu_seqlens is None or batch.positions is None:
            return self(idx, last % idx.shape[1])
        return self(idx, last, batch.cu_seqlens.to(device), batch.positions.to(device))

    def encode(self, encoding: Encoding, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """The tokens of each text, at most `length` of its beginning, and how many texts were longer."""
        ids = [encoding.encode_ordinary(text) for text in texts]
        empty = next((n for n, text in enumerate(texts) if not text.strip()), None)
        if empty is not None:
            raise GptfastError(f"text {empty + 1} is empty; there is nothing to classify")
        return [x[: self.length] for x in ids], sum(len(x) > self.length for x in ids)

    def collate(self) -> Collate:
        """How texts become the batches that this classifier wants where they are not packed."""
        return padded(self.pad_id, self.length if self.position == "end" else None)

    @torch.no_grad()
    def probabilities(self, ids: Sequence[Sequence[int]], batch_size: int = 32) -> np.ndarray:
        """float64 [N, K] of N texts as tokens, in their order; without dropout."""
        result = np.empty((len(ids), len(self.names)))
        was_training = self.training
        self.eval()
        for batch in batches(ids, batch_size, self.collate(), None):
            result[batch.texts] = self.on(batch).double().softmax(-1).cpu().numpy()
        self.train(was_training)
        return result

    def train_only(self, layers: Layers, lora: LoRAConfig | None = None) -> None:
        """Which parameters require gradients: the head, and of the body nothing, its last block and final LayerNorm,
        everything, or LoRA's.
        """
        if layers == "lora":
            add_lora(self, lora or LoRAConfig())
        else:
            self.requires_grad_(layers == "all")
        if layers == "last-block":
            self.body.h[-1].requires_grad_(True)
            self.body.ln_f.requires_grad_(True)
        self.score.requires_grad_(True)

    def save(self, folder: str | Path, encoding: Encoding) -> None:
        """Write config.json and model.safetensors as GPT2ForSequenceClassification reads them, LoRA merged, and which
        tokenizer the model has: state.json, and tokenizer.json where it is not a published one.
        """
        folder = Path(folder)
        make_folder(folder)
        has_lora = any(isinstance(module, LoRALinear) for module in self.modules())
        if has_lora:
            merge_lora(self)
        try:
            tensors = {**to_hf(self.body), "score.weight": self.score.weight}
            with atomic_path(folder / "model.safetensors") as temporary:
                write_safetensors(temporary, tensors, {"format": "pt"})
        finally:
            if has_lora:
                unmerge_lora(self)
        write_json(folder / "config.json", self._config_values())
        published = encoding.name in ENCODING_NAMES
        if not published:
            encoding.save(folder / VOCABULARY)
        write_json(
            folder / STATE, {"encoding": encoding.name if published else VOCABULARY, "encoding_hash": encoding.hash}
        )

    def _config_values(self) -> dict[str, Any]:
        values = config_values(self.body.config)
        if values["model_type"] == "gpt2":
            values["architectures"] = ["GPT2ForSequenceClassification"]
        return values | {
            "num_labels": len(self.names), "problem_type": "single_label_classification",
            "id2label": {str(k): name for k, name in enumerate(self.names)},
            "label2id": {name: k for k, name in enumerate(self.names)},
            # With a padding token transformers takes the last token that is none; without, the last position.
            "pad_token_id": self.pad_id if self.position == "last-token" else None,
            "gptfast_classifier": {"length": self.length, "position": self.position, "pad_id": self.pad_id},
        }  # fmt: skip

    @classmethod
    def load(cls, folder: str | Path) -> tuple[Classifier, Encoding]:
        """The classifier that `save` wrote, or the best one of a run, and its tokenizer; on the CPU, in eval mode.

        Raises GptfastError for a folder that holds something else.
        """
        folder = find_checkpoint(Path(folder))
        advice = "give a run of `gptfast finetune-classifier` or its best/"
        if not (folder / "model.safetensors").is_file() or not (folder / "config.json").is_file():
            raise GptfastError(f"{folder} holds no classifier (no {BEST}/, no model); {advice}")
        values = read_json(folder / "config.json", "model_type")
        found = find(folder)
        if "score.weight" not in found.tensors or "gptfast_classifier" not in values:
            raise GptfastError(f"{folder} holds no classifier, but {values.get('architectures')}; {advice}")
        score = found.tensors.pop("score.weight").read().clone()
        try:
            names = [values["id2label"][str(k)] for k in range(max(len(score), len(values["id2label"])))]
            settings = [values["gptfast_classifier"][key] for key in ("pad_id", "length", "position")]
        except (KeyError, TypeError):
            names = []
        if len(names) != len(score):
            raise GptfastError(f"{folder / 'config.json'} is damaged: it does not describe the classifier; restore it")
        body = found.load()
        model = cls(body, names, *settings)
        model.score.weight = nn.Parameter(score)
        tokenizer = read_json(folder / STATE, "encoding", "encoding_hash")
        name = tokenizer["encoding"]
        encoding = get_encoding(str(folder / name) if name == VOCABULARY else name)
        if encoding.hash != tokenizer["encoding_hash"]:
            raise GptfastError(f"{folder}: the tokenizer {name!r} is not the one that the classifier was trained with")
        return model.eval(), encoding
