"""Templates: the published formats letter for letter, a user's own, and what is refused."""

from __future__ import annotations

import json

import pytest

import gptfast
from gptfast.finetune.templates import Template, render

EXAMPLE = {"instruction": "Name {x}.", "input": "a b\nc", "output": "It is {y}."}
BARE = {**EXAMPLE, "input": ""}
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you"},
]

# The chat template of microsoft/Phi-3-mini-4k-instruct's tokenizer_config.json.
PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + "
    "'<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif "
    "message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def text(segments):
    return "".join(part for part, _ in segments)


def responses(segments):
    return [part for part, is_response in segments if is_response]


def book_format(entry):
    """As chapter 7 of "Build a Large Language Model (From Scratch)" describes its Alpaca prompt."""
    head = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    middle = f"\n\n### Instruction:\n{entry['instruction']}"
    extra = f"\n\n### Input:\n{entry['input']}" if entry["input"] else ""
    return head + middle + extra + f"\n\n### Response:\n{entry['output']}"


@pytest.mark.parametrize("example", [EXAMPLE, BARE])
def test_alpaca_is_the_books(example):
    alpaca = Template.of("alpaca")
    segments = render(example, alpaca)
    assert text(segments) == book_format(example) and responses(segments) == ["It is {y}."]
    assert alpaca.prompt(example) == book_format({**example, "output": ""})


def test_phi3_is_microsofts():
    jinja2 = pytest.importorskip("jinja2")
    theirs = jinja2.Template(PHI3, keep_trailing_newline=True)
    phi3 = Template.of("phi3")
    for messages in (CHAT, CHAT[1:], CHAT[1:3]):
        # Phi-3's ends with a line break, for the turn that follows.
        assert text(phi3.render(messages)) + "\n" == theirs.render(messages=messages)
        assert phi3.prompt(messages) == theirs.render(messages=messages[:-1], add_generation_prompt=True)
    assert responses(phi3.render(CHAT)) == ["Hello<|end|>", "See you<|end|>"]
    assert phi3.prompt(EXAMPLE) == "<|user|>\nName {x}.\na b\nc<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize("name", ["alpaca", "phi3", "Q: {instruction}\nA: {output}"])
def test_a_chat_goes_on_from_what_was_trained(name):
    """The prompt of each turn is the beginning of the text of the whole conversation."""
    template = Template.of(name)
    whole = text(template.render(CHAT))
    for end in (2, 4):
        prompt = template.prompt(CHAT[:end])
        assert whole.startswith(prompt) and whole[len(prompt) :].startswith(CHAT[end]["content"])


def test_stops():
    assert Template.of("alpaca").stops() == ["### Instruction:"]
    assert Template.of("phi3").stops() == ["<|end|>", "<|user|>"]
    assert Template.of("Q: {instruction}\nA: {output} ##").stops() == ["##", "\nQ:"]
    assert Template.of("> {instruction}\n{output}").stops() == ["\n>"]  # not where an answer says 3 > 2
    assert Template.of("{instruction}={output}").stops() == []


def test_a_users_own(tmp_path):
    source = "# {{task}}\nQ: {instruction}\n{input}\nA: {output}\n"
    (tmp_path / "mine.txt").write_text(source)
    for template in (Template.of(source), Template.of(str(tmp_path / "mine.txt"))):
        assert text(template.render(EXAMPLE)) == "# {task}\nQ: Name {x}.\na b\nc\nA: It is {y}."
        assert text(template.render(BARE)) == "# {task}\nQ: Name {x}.\nA: It is {y}."
    assert text(Template.of("{instruction} ({input}) -> {output}").render(BARE)) == "Name {x}. () -> It is {y}."
    (tmp_path / "mine.json").write_text(json.dumps({"turn": "{instruction}>{output}", "separator": "|"}))
    assert text(Template.of(str(tmp_path / "mine.json")).render(CHAT[1:])) == "Hi>Hello|Bye>See you"


def test_saved_and_loaded(tmp_path):
    assert Template.load(tmp_path) is None
    (tmp_path / "best").mkdir()
    Template.of("phi3").save(tmp_path / "best")
    assert Template.load(tmp_path) == Template.load(tmp_path / "best") == Template.of("phi3")


@pytest.mark.parametrize(
    "source, message",
    [
        ("{instruction}", "no {output}"),
        ("{output}", "no {instruction}"),
        ("{instruction} {answer} {output}", "unknown field {answer}"),
        ("{instruction!r} {output}", "unknown field {instruction!r}"),
        ("{instruction} {instruction} {output}", "twice"),
        ("{output} {instruction}", "behind {output}"),
        ("{instruction} { {output}", "for braces"),
        ("chatml", "no template 'chatml'; choose alpaca or phi3"),
    ],
)
def test_bad_templates_are_refused(source, message):
    with pytest.raises(gptfast.GptfastError, match=message.replace("{", r"\{")):
        Template.of(source)


def test_bad_template_files_are_refused(tmp_path):
    for name, content, message in (
        ("a.json", b'{"turn": "{instruction}{output}", "color": 1}', "sets color"),
        ("b.json", b'{"turn": 3}', "must be a text"),
        ("c.json", b'{"text": ""}', "no 'turn'"),
        ("d.txt", b"\xff", "not UTF-8"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(gptfast.GptfastError, match=message):
            Template.of(str(tmp_path / name))


USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    "example, message",
    [
        ({}, "nothing"),
        ({"text": "a"}, "neither 'instruction' nor 'messages', but 'text'"),
        ({**EXAMPLE, "output": ""}, "no response"),
        ({**EXAMPLE, "output": " \n"}, "no response"),
        ({**EXAMPLE, "output": None}, "'output' is None"),
        ({**EXAMPLE, "instruction": "  "}, "'instruction' is empty"),
        ({"messages": []}, "not a list"),
        ({"messages": "Hi"}, "not a list"),
        ({"messages": ["Hi"]}, "message 1"),
        ({"messages": [USER]}, "no response"),
        ({"messages": [USER, USER]}, "message 2 is out of turn"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "message 1 is out of turn"),
        ({"messages": [USER, {"role": "tool", "content": "Hi"}]}, "message 2 is no"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "message 2 is no"),
        ({"messages": [{"role": "system", "content": "Hi"}]}, "no question"),
    ],
)
def test_bad_examples_are_refused(example, message):
    with pytest.raises(gptfast.GptfastError, match=message):
        Template.of("alpaca").render(example)
