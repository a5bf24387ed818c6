"""The terminal chat: what the model is shown, what is said about it, and Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from serving import SLOW, until

from gptfast.chat import Chat, Terminal, main
from gptfast.errors import GptfastError
from gptfast.serve.engine import Sampling


@pytest.fixture
def chat(assistant):
    chat = Chat(assistant, Sampling(0.0), max_new_tokens=4)
    yield chat
    chat.close()


def spy(chat, monkeypatch) -> list[str]:
    """The prompts as text, as they come."""
    prompts = []
    submit = chat._engine.submit
    monkeypatch.setattr(
        chat._engine, "submit", lambda new: (prompts.append(bytes(new[0].prompt).decode()), submit(new))[1]
    )
    return prompts


def piped(monkeypatch, chat, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))
    Terminal(chat).run()


def test_a_conversation_is_the_prompt_and_the_oldest_exchange_goes_first(script, chat, monkeypatch, capsys):
    prompts = spy(chat, monkeypatch)
    piped(monkeypatch, chat, "/system S\none\ntwo\nthree\n/reset\nfour\nfive\n")
    first, second = "user: one\nassistant:", "user: two\nassistant:"
    assert prompts == [
        f"system: S\n{first}",
        f"system: S\n{first}abcd\n{second}",  # 54 bytes; 4 are kept free of 64
        f"system: S\n{second}abcd\nuser: three\nassistant:",
        "system: S\nuser: four\nassistant:",
        "system: S\nuser: four\nassistant:abcd\nuser: five\nassistant:",
    ]
    out, err = capsys.readouterr()
    assert out == "abcd\n" * 5
    assert "1 of the oldest exchanges no longer fit" in err and err.count("oldest") == 1


def test_what_the_model_sees_no_more_is_still_saved(script, chat):
    for question in ("one", "two", "three"):
        list(chat.ask(question))
    list(chat.ask("x" * 30))
    assert chat.dropped > 0 and len(chat.messages()) == 8


def test_a_quarter_of_the_context_is_kept_for_the_answer(script, chat, monkeypatch):
    prompts = spy(chat, monkeypatch)
    script.text = [ord("a"), 256]  # "a" and end-of-text
    chat.max_new_tokens = 1000
    list(chat.ask("q"))
    for question, length in (("x" * 11, 48), ("x" * 12, 29)):  # 48 tokens leave 16 of 64; 49 do not, so "q" goes
        list(chat.ask(question))
        assert len(prompts[-1]) == length
        del chat.history[2:]


def test_commands(script, chat, monkeypatch, tmp_path, capsys):
    prompts = spy(chat, monkeypatch)
    saved = tmp_path / "a file.json"
    script.text = b"a\x1b[2Jz"  # what could clear the screen
    chat.max_new_tokens = 6
    piped(monkeypatch, chat, f'one\n/save {saved}\n/reset\n"""\n/a\n\nb"""\n\n/help\n/quit\nnever\n')
    assert prompts == ["user: one\nassistant:", "user: /a\n\nb\nassistant:"]
    answer = {"role": "assistant", "content": "a\x1b[2Jz"}
    assert json.loads(saved.read_text()) == {"messages": [{"role": "user", "content": "one"}, answer]}
    out, err = capsys.readouterr()
    assert out == "a\N{REPLACEMENT CHARACTER}[2Jz\n" * 2 and "/system TEXT" in err
    for line, message in [
        (f"/save {saved}", "exists"), ("/save", "the name of a file"), ("/nothing", "no /nothing"),
        ("/save ~nobody-of-that-name/a", "give another name"), (f"/save {'a' * 300}", "cannot write a"),
        ("/save a\0b", "give another name"), (f"/save {tmp_path}/nowhere/a", "cannot write"),
    ]:  # fmt: skip
        with pytest.raises(GptfastError, match=message):
            piped(monkeypatch, chat, line)


def test_a_question_that_does_not_fit_is_refused_and_an_empty_answer_forgotten(script, chat, monkeypatch):
    prompts = spy(chat, monkeypatch)
    list(chat.ask("one"))
    with pytest.raises(GptfastError, match="context holds 64"):
        list(chat.ask("x" * 60))
    list(chat.ask("two"))
    assert prompts[-1] == "user: one\nassistant:abcd\nuser: two\nassistant:"  # what was refused has dropped nothing
    chat.reset()
    script.text = b"\n"
    assert "".join(chat.ask("q")).strip() == "" and chat.messages() == []


def test_a_block_that_is_not_closed_is_a_message(script, chat, monkeypatch):
    prompts = spy(chat, monkeypatch)
    piped(monkeypatch, chat, '"""/a\nb')
    assert prompts == ["user: /a\nb\nassistant:"]


def test_where_the_output_is_a_file_it_holds_the_answers_only(script, chat, monkeypatch, capsys):
    lines = iter(["/nothing", "q", "/quit"])  # a mistake at the keyboard does not end the chat
    asked = []
    monkeypatch.setattr("builtins.input", lambda prompt: (asked.append(prompt), next(lines))[1])
    terminal = Terminal(chat)
    terminal.interactive = True
    terminal.run()
    out, err = capsys.readouterr()
    assert out == "abcd\n" and asked == [""] * 3 and err.count("> ") == 3  # input() writes to the output
    assert "error: there is no /nothing" in err


def test_a_character_that_the_output_cannot_show_is_escaped(assistant, tmp_path, monkeypatch):
    assistant.model.save_pretrained(tmp_path / "m")
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    main([str(tmp_path / "m"), "--encoding", "bytes", "--seed", "1", "--max-new-tokens", "20", "--device", "cpu"])
    assert b"\\ufffd" in out.buffer.getvalue()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_model_that_failed_is_said_each_time(script, chat):
    script.step = lambda tokens, rows=None: 1 / 0
    with pytest.raises(GptfastError, match="the model failed: division by zero"):
        list(chat.ask("q"))
    with pytest.raises(GptfastError, match="the model failed; /save"):
        list(chat.ask("q"))


def test_the_seed_decides(assistant):
    texts = []
    for seed in (1, 1, 2):
        chat = Chat(assistant, Sampling(1.0), 20, seed)
        texts.append("".join(chat.ask("hello")))
        chat.close()
    assert texts[0] == texts[1] != texts[2]
    chat = Chat(assistant, Sampling(1.0), 20, 1)
    again = []
    for _ in range(2):
        again.append("".join(chat.ask("hello")))
        chat.reset()
    chat.close()
    assert again[0] == texts[0] != again[1]  # the same question, another answer


def test_an_answer_that_is_left_stops(script, chat):
    script.gate = threading.Semaphore(2)
    chat.max_new_tokens = 1000
    pieces = chat.ask("q")
    assert next(pieces) == "a"
    threading.Timer(0.1, lambda: script.gate.release(1)).start()
    pieces.close()
    assert chat.finish == "cancelled" and chat.messages()[1]["content"] == "a"
    script.gate.release(100)
    assert next(chat.ask("again")) == "a"


def test_what_was_left_in_a_hurry_is_not_the_next_answer(script, chat, monkeypatch):
    """Ctrl-C twice: the second comes while the first is waited for."""
    script.gate = threading.Semaphore(3)
    chat.max_new_tokens = 1000
    pieces = chat.ask("q")
    assert next(pieces) == "a"
    cancel = chat._engine.cancel
    with monkeypatch.context() as once:
        once.setattr(chat._engine, "cancel", lambda generations: (cancel(generations), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            pieces.close()
    script.gate.release(100)
    chat.max_new_tokens = 4
    assert "".join(chat.ask("again")) == "abcd" and chat.finish == "length"


@pytest.mark.parametrize(
    "flag", [["--temperature", "nan"], ["--top-p", "0"], ["--top-k", "0"], ["--max-new-tokens", "0"]]
)
def test_flags_out_of_range(flag):
    with pytest.raises(GptfastError, match=f"{flag[0]} is"):
        main(["nowhere", *flag])


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_in_a_terminal_ctrl_c_stops_the_answer_and_not_the_chat(assistant, tmp_path):
    assistant.model.save_pretrained(tmp_path / "m")
    keyboard, terminal = os.openpty()
    command = [sys.executable, "-c", SLOW, "chat", str(tmp_path / "m"), "--encoding", "bytes", "--seed", "1"]
    process = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        env=os.environ | {"TERM": "dumb", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    os.close(terminal)
    seen = bytearray()

    def read() -> None:
        try:
            while data := os.read(keyboard, 1024):
                seen.extend(data)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        until(lambda: b"> " in seen, 40)
        os.write(keyboard, b"hello\n")
        until(lambda: seen.count(b"\n") >= 2)
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGINT)
        until(lambda: b"(stopped)" in seen)
        os.kill(process.pid, signal.SIGINT)  # nothing is being written now
        until(lambda: b"/quit or Ctrl-D ends the chat" in seen)
        os.write(keyboard, b"/quit\n")
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        reader.join(5)
        os.close(keyboard)
