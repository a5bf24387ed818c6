"""Our model in lm-evaluation-harness: its numbers on tasks of a file are ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (the extra lm-eval)")

from gptfast.evaluate.hellaswag import Task, hellaswag  # noqa: E402
from gptfast.evaluate.lambada import lambada  # noqa: E402
from gptfast.evaluate.loglikelihood import score  # noqa: E402
from gptfast.evaluate.perplexity import perplexity  # noqa: E402

TASKS = [Task(f"c{i}", ["a" * (i % 3 + 1), "bb", "ccc é", "d"], i % 4) for i in range(12)]
TEXTS = ["one two three", "a b", "where is the word", "short text here"]

YAML = {
    "choice": """
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_target: "{{label}}"
doc_to_choice: "choices"
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_bytes}]
""",
    "word": """
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
metric_list: [{metric: perplexity}, {metric: acc}]
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
""",
    "write": """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "x"
generation_kwargs: {until: ["zzz"], max_gen_toks: 4}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module")
def results(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    import gptfast.evaluate.harness  # noqa: F401  (registers the model)

    tasks = tmp_path_factory.mktemp("tasks")
    choices = [{"query": t.context, "choices": t.endings, "label": t.label} for t in TASKS]
    (tasks / "choice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in choices))
    for name, yaml in YAML.items():
        if name != "choice":
            (tasks / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
        data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tasks / name}.jsonl}}}}\ntest_split: test\n"
        (tasks / f"{name}.yaml").write_text(f"task: gptfast_{name}\n{data}{yaml}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tasks / "cache"))
        found = lm_eval.simple_evaluate(
            model="gptfast", model_args=f"run={folder},encoding=bytes,device=cpu", bootstrap_iters=0,
            tasks=[f"gptfast_{name}" for name in YAML],
            task_manager=lm_eval.tasks.TaskManager(include_path=str(tasks)),
        )  # fmt: skip
    return found


def test_its_numbers_are_ours(results, model, encoding) -> None:
    values = {name.removeprefix("gptfast_"): row for name, row in results["results"].items()}
    for name, accuracy in hellaswag(model, encoding, TASKS).items():
        if name != "acc_tokens":
            assert values["choice"][f"{name},none"] == pytest.approx(accuracy.value)
    acc, word_perplexity = lambada(model, encoding, [tuple(text.rsplit(" ", 1)) for text in TEXTS])
    assert values["word"]["acc,none"] == acc.value
    assert values["word"]["perplexity,none"] == pytest.approx(word_perplexity)
    assert values["rolling"]["bits_per_byte,none"] == pytest.approx(perplexity(model, encoding, TEXTS).bits_per_byte)
    assert "exact_match,none" in values["write"]


def test_what_is_longer_than_the_context(model, encoding, folder: Path) -> None:
    from lm_eval.api.instance import Instance

    from gptfast.evaluate.harness import GptfastLM

    lm = GptfastLM(str(folder), encoding="bytes", device="cuda:0" if not torch.cuda.is_available() else "cpu")

    def ask(method: str, *arguments: object) -> object:
        return getattr(lm, method)([Instance(method, {}, arguments, 0)], disable_tqdm=True)[0]

    text = "a long text with more bytes than the context holds, by far and again"  # 68 bytes, 48 in the context
    ids = list(text.encode())
    first = score(model, [([encoding.eot_token], ids[:48]), (ids[19:48], ids[48:])])
    assert ask("loglikelihood_rolling", text) == pytest.approx(first[0][0] + first[1][0])
    written = model.generate(torch.tensor([ids[-44:]]), 4, temperature=0, eos_id=encoding.eot_token)[0, 44:].tolist()
    want = bytes(t for t in written if t < 256).decode("utf-8", "replace")
    assert ask("generate_until", text, {"until": "zzz", "max_gen_toks": 4}) == want
    assert ask("loglikelihood", "ab", " c") == score(model, [(list(b"ab"), list(b" c"))])[0][:2]
