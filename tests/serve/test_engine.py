"""Continuous batching: what runs beside a text changes nothing, nobody starves, rows are given back."""

from __future__ import annotations

import queue
import threading

import pytest
import torch
from serving import until

from gptfast import decode
from gptfast.errors import GptfastError
from gptfast.sampling import probabilities
from gptfast.serve import engine as engine_module
from gptfast.serve.engine import (
    Engine,
    Event,
    Generation,
    PromptTooLong,
    QueueFull,
    Sampling,
    Stopped,
    draw,
)

GREEDY = Sampling(0.0)
EOT = 256


class Client:
    def __init__(self, prompt, max_tokens=1000, sampling=GREEDY, seed=0, stops=()):
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.generation = Generation(list(prompt), max_tokens, self.events.put, sampling, seed, stops)

    def result(self) -> tuple[str, str]:
        """All of the text, and how it ended."""
        text = ""
        while True:
            event = self.events.get(timeout=20)
            text += event.text
            if event.finish:
                return text, event.finish


@pytest.fixture
def engine(assistant):
    made = []

    def make(rows=3, waiting=16, start=True) -> Engine:
        made.append(Engine(assistant.model, assistant.encoding, rows, waiting))
        if start:
            made[-1].start()
        return made[-1]

    yield make
    for engine in made:
        engine.close()
        engine.join()


def run(engine, *clients):
    engine.submit([client.generation for client in clients])
    return [client.result() for client in clients]


@pytest.mark.parametrize("part", [8, 256])
@pytest.mark.parametrize("compiled", [True, False])
def test_texts_beside_each_other_are_those_of_generate(engine, assistant, monkeypatch, part, compiled):
    monkeypatch.setattr(engine_module, "PART", part)
    if not compiled:  # the step of all rows then writes into those that are half read, too
        monkeypatch.setattr(decode, "_cpu_step", lambda model: None)
    prompts = [list(b"one"), list(b"a second prompt"), [EOT], list(b"the fourth"), list(b"x" * 50)]
    clients = [Client(prompt) for prompt in prompts]  # five on three rows, of different lengths
    model = assistant.model
    for client, (text, finish), prompt in zip(clients, run(engine(), *clients), prompts, strict=True):
        want = model.generate(torch.tensor([prompt]), 64 - len(prompt), temperature=0)[0, len(prompt) :].tolist()
        want = want[: want.index(EOT)] if EOT in want else want
        assert all(token < 256 for token in want), "choose a model whose likeliest tokens are bytes"
        assert text == bytes(want).decode(errors="replace")
        assert finish == ("length" if len(want) == 64 - len(prompt) else "stop")
        assert client.generation.tokens == len(want) + (finish == "stop")


def test_the_same_seed_gives_the_same_text_whatever_runs_beside_it(engine):
    hot = Sampling(1.0, top_p=0.9)
    alone = run(engine(), Client(b"hello", 40, hot, 7))[0]
    others = [Client(b"other" * (i + 1), 30, Sampling(1.3, top_k=5 + i), i) for i in range(4)]
    *_, beside, different = run(engine(), *others, Client(b"hello", 40, hot, 7), Client(b"hello", 40, hot, 8))
    assert beside == alone != different


@pytest.mark.parametrize(
    "sampling", [Sampling(0.7), Sampling(1.0, top_k=3), Sampling(1.5, top_p=0.8), Sampling(2.0, 6, 0.9)]
)
def test_draws_have_the_probabilities_of_sampling(sampling):
    torch.manual_seed(0)
    logits = torch.randn(1, 12).double()
    p = probabilities(logits, *sampling)[0]
    n = 20_000
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(1)).tolist()
    counts = torch.bincount(draw(logits.expand(n, -1), uniform, sampling), minlength=12)
    assert (counts[p == 0] == 0).all()
    torch.testing.assert_close(counts / n, p, atol=4 * 0.5 / n**0.5, rtol=0, check_dtype=False)


def test_the_ends_of_the_uniform_numbers_draw_tokens_that_are_possible():
    logits = torch.full((2, 5000), -torch.inf)
    logits[:, 1000:4000] = torch.randn(3000)
    low, high = draw(logits, [0.0, 1 - 2**-53], Sampling()).tolist()
    assert (low, high) == (1000, 3999)
    logits[1] = torch.nan
    assert draw(logits, [0.5, 0.5], Sampling())[1] == draw(logits, [0.5, 0.5], GREEDY)[1] == -1
    smallest = Sampling(5e-324, None, 5e-324)  # as a request may hold
    assert draw(torch.arange(7.0)[None], [0.3], smallest) == 6


def test_ids_that_are_no_token_are_never_drawn(engine, script):
    script.logits = lambda rows: torch.zeros(len(rows), 300).index_fill(1, torch.arange(257, 300), 50.0)
    client = Client(b"a", 60, Sampling(2.0))
    run(engine(), client)
    assert client.generation.last <= EOT


def test_a_token_without_bytes_is_no_text(assistant, script):
    class Gap:  # as between the tokens and the special tokens of cl100k_base
        n_vocab, eot_token = 257, EOT

        def decode_bytes(self, tokens):
            if tokens == [ord("c")]:
                raise KeyError(tokens)
            return bytes(tokens)

    e = Engine(assistant.model, Gap(), 1, 1)
    e.start()
    assert run(e, Client(b"p", 5)) == [("abde", "length")]
    e.close()
    e.join()


def test_characters_and_stop_strings_across_tokens(engine, script):
    script.text = "né€😀, and then".encode()
    e = engine()
    assert run(e, Client(b"p", 12))[0] == ("né€😀, ", "length")
    assert run(e, Client(b"p", 5))[0] == ("né\N{REPLACEMENT CHARACTER}", "length")  # half a character at the end
    assert run(e, Client(b"p", stops=["zz", ", an"]))[0] == ("né€😀", "stop")
    assert run(e, Client(b"p", 14, stops=[", andy"]))[0] == ("né€😀, an", "length")  # held back, and then given


def test_the_context_ends_a_text(engine):
    client = Client(b"x" * 63)
    ((text, finish),) = run(engine(), client)
    assert finish == "length" and client.generation.tokens == 1
    with pytest.raises(PromptTooLong, match="64 tokens, and the model's context holds 64"):
        engine().submit([Client(b"x" * 64).generation])
    for prompt in ([], [-1], [300]):
        with pytest.raises(GptfastError, match="each from 0 to 299"):
            engine().submit([Client(prompt).generation])


def test_prompts_are_read_in_parts_and_in_turn_between_the_steps_of_others(engine, script, monkeypatch):
    monkeypatch.setattr(engine_module, "PART", 8)
    e = engine(rows=4, start=False)
    clients = [Client(b"p" * n, 12) for n in (9, 20, 12, 1, 1)]  # the last waits for a row
    e.submit([client.generation for client in clients])
    e.start()
    for client in clients:
        assert client.result() == ("abcdefghijab", "length")
    assert script.calls[:9] == [
        ("read", [0] * 9), ("step", [0]),  # the first holds up nobody
        ("read", [1] * 8), ("step", [0]),
        ("read", [2] * 8), ("step", [0]),
        ("read", [3]), ("read", [1] * 6), ("step", [0, 3]),  # a short one counts as a quarter of a part
    ]  # fmt: skip
    assert script.calls[9:12] == [("read", [2] * 4), ("read", [1] * 4), ("step", [0, 2, 3])]


def test_no_part_is_too_small_to_be_worth_reading_the_weights(engine, script, monkeypatch):
    monkeypatch.setattr(engine_module, "PART", 8)
    e = engine(rows=3, start=False)
    e.submit([Client(b"p" * n, 30).generation for n in (1, 7, 20)])
    for _ in range(2):
        e._next_round(), e._read()
    assert script.calls == [("read", [0]), ("read", [1] * 7)]  # and not one token of the third


def test_the_first_tokens_of_a_round_do_not_wait_for_its_other_prompts(engine, script):
    e, order = engine(start=False), []
    running, *others = (Generation(list(b"p"), 9, lambda event: order.append(event.generation)) for _ in range(3))
    e.submit([running])
    read = script.prefill
    script.prefill = lambda idx, row, start: (order.append(row), read(idx, row, start))[1]
    e._next_round(), e._read()
    e.submit(others)
    e._next_round(), e._read()
    assert order == [0, running, 1, others[0], 2, others[1]]


@pytest.mark.parametrize("how", ["a text", "a prompt that is half read"])
def test_who_comes_into_a_row_that_was_left_gets_a_text_of_his_own(engine, assistant, monkeypatch, how):
    monkeypatch.setattr(engine_module, "PART", 8)
    e = engine(rows=2, start=False)
    running, gone, next_ = Client(b"r"), Client(b"g" * (2 if how == "a text" else 40)), Client(b"n" * 20, 9)
    alone = run(engine(), Client(b"n" * 20, 9))
    e.submit([client.generation for client in (running, gone, next_)])
    for _ in range(3):
        e._next_round(), e._read(), e._step()
    assert gone.generation.read == (2 if how == "a text" else 16)
    e.cancel([gone.generation])
    e.start()
    assert [next_.result()] == alone and gone.result()[1] == "cancelled"
    assert running.result() == run(engine(), Client(b"r"))[0]


def test_who_leaves_frees_the_row_at_once(engine, script):
    script.gate = threading.Semaphore(0)
    e = engine(rows=1)
    gone, next_, waited = Client(b"a"), Client(b"b", 3), Client(b"c")
    for client in (gone, next_, waited):
        e.submit([client.generation])
    until(lambda: e.load() == (1, 2))
    e.cancel([gone.generation, waited.generation])
    script.gate.release(100)
    assert gone.result()[1] == waited.result()[1] == "cancelled"
    assert next_.result() == ("abc", "length")
    assert gone.generation.tokens == 2 and waited.generation.tokens == 0
    until(lambda: e.load() == (0, 0))


def test_the_queue_is_bounded_and_takes_all_or_none(engine, script):
    script.gate = threading.Semaphore(0)
    e = engine(rows=1, waiting=2)
    first, *others = (Client(b"a", 3) for _ in range(4))
    e.submit([first.generation])
    until(lambda: e.load() == (1, 0))
    with pytest.raises(QueueFull):
        e.submit([client.generation for client in others])
    assert e.load() == (1, 0)
    e.submit([client.generation for client in others[:2]])
    with pytest.raises(QueueFull):
        e.submit([others[2].generation])
    with pytest.raises(GptfastError, match="4 texts at once are more than the 3"):
        e.submit([client.generation for client in (first, *others)])
    script.gate.release(100)
    assert [client.result()[1] for client in (first, *others[:2])] == ["length"] * 3


def test_closing_ends_every_text(engine, script):
    script.gate = threading.Semaphore(0)
    e = engine(rows=1)
    active, waiting = Client(b"a"), Client(b"b")
    e.submit([active.generation, waiting.generation])
    until(lambda: e.load() == (1, 1))
    e.close()
    script.gate.release()
    e.join()
    assert active.result()[1] == waiting.result()[1] == "error"
    with pytest.raises(Stopped):
        e.submit([Client(b"c").generation])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_model_that_fails_ends_every_text_and_is_not_asked_again(engine, script):
    script.step = lambda tokens, rows=None: 1 / 0
    e = engine(rows=2)
    results = run(e, Client(b"a"), Client(b"b"))
    assert [finish for _, finish in results] == ["error", "error"] and isinstance(e.failure, ZeroDivisionError)
    with pytest.raises(Stopped):
        e.submit([Client(b"c").generation])


def test_numbers_that_are_none_end_their_own_text_only(engine, script):
    good = script.logits

    def logits(rows):
        out = good(rows)
        if 1 in rows:
            out[rows.index(1)] = torch.nan
        return out

    script.logits = logits
    results = run(engine(rows=2), Client(b"a", 5), Client(b"b", 5))
    assert results == [("abcde", "length"), ("", "error")]
