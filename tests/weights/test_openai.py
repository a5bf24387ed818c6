"""The download of OpenAI's files, from a server of our own: resumed, refused, from the cache."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import gptfast
from gptfast.cli import main
from gptfast.weights import openai

GOLDEN = Path(__file__).parents[1] / "golden" / "tensorflow"


class Server(ThreadingHTTPServer):
    """Serves `files` below /124M/. `cut`: how many bytes of a body it sends before it hangs up; `ranges`: whether it
    knows them; `requests`: the paths and Range headers that it saw.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {path.name: path.read_bytes() for path in GOLDEN.iterdir()}
        self.files |= {"encoder.json": b"{}", "vocab.bpe": b"#version: 0.2\n"}
        self.cut: int | None = None
        self.ranges = True
        self.status = 200
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/models/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[1]
        wanted = self.headers.get("Range")
        self.server.requests.append((name, wanted))
        if not self.path.startswith("/models/124M/") or name not in self.server.files or self.server.status != 200:
            self.send_error(404 if self.server.status == 200 else self.server.status)
            return
        body = self.server.files[name]
        if wanted and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            body = body[start:]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    server = Server()
    monkeypatch.setitem(openai.SIZES, "124M", len(server.files[openai.DATA]))
    monkeypatch.setenv(openai.MIRROR_VARIABLE, server.url)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def check(folder: Path, server: Server) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(openai.FILES)
    assert all((folder / name).read_bytes() == server.files[name] for name in openai.FILES)
    assert gptfast.load_weights(folder).config.n_layer == 2


def test_sizes_are_four_bytes_a_parameter():
    from gptfast.weights.layout import empty_model

    for preset, size in zip(("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"), openai.SIZES.values(), strict=True):
        assert size == 4 * empty_model(gptfast.GPTConfig.preset(preset)).num_parameters()


def test_download_and_download_again(tmp_path, server):
    seen = []
    openai.download("124M", tmp_path, progress=lambda *progress: seen.append(progress))
    check(tmp_path, server)
    assert (openai.DATA, 7584, 7584) in seen
    count = len(server.requests)
    openai.download("124M", tmp_path)
    assert len(server.requests) == count  # all there


def test_a_connection_that_is_cut_goes_on_where_it_stopped(tmp_path, server):
    server.cut = 1000
    openai.download("124M", tmp_path)
    check(tmp_path, server)
    ranges = [wanted for name, wanted in server.requests if name == openai.DATA]
    assert ranges == [None, *(f"bytes={n}-" for n in range(1000, 7584, 1000))]


def test_a_later_run_goes_on_where_the_earlier_stopped(tmp_path, server):
    (tmp_path / f"{openai.DATA}.part").write_bytes(server.files[openai.DATA][:5000])
    openai.download("124M", tmp_path)
    check(tmp_path, server)
    assert (openai.DATA, "bytes=5000-") in server.requests


def test_a_server_without_ranges_starts_over(tmp_path, server):
    server.ranges = False
    (tmp_path / f"{openai.DATA}.part").write_bytes(b"x" * 5000)
    openai.download("124M", tmp_path)
    check(tmp_path, server)


def test_a_part_that_is_too_long_starts_over(tmp_path, server):
    (tmp_path / "encoder.json.part").write_bytes(b"x" * 5000)
    openai.download("124M", tmp_path)
    check(tmp_path, server)


def test_a_server_that_gives_nothing_is_named(tmp_path, server):
    server.cut = 0
    with pytest.raises(gptfast.GptfastError, match=r"cannot download .*hparams.json \(the connection ended after 0 of"):
        openai.download("124M", tmp_path)


@pytest.mark.parametrize(("status", "said"), [(404, "the server says 404"), (503, "cannot download .*503")])
def test_refusals_are_named(tmp_path, server, status, said):
    server.status = status
    with pytest.raises(gptfast.GptfastError, match=said):
        openai.download("124M", tmp_path)


def test_a_file_of_the_wrong_size_is_refused(tmp_path, server):
    server.files[openai.DATA] += b"x"
    with pytest.raises(gptfast.GptfastError, match="has 7,585 bytes, not 7,584; it is not OpenAI's file"):
        openai.download("124M", tmp_path)
    (tmp_path / openai.DATA).write_bytes(b"x")
    with pytest.raises(gptfast.GptfastError, match="has 1 bytes, not 7,584; delete it"):
        openai.download("124M", tmp_path)


def test_nobody_there(tmp_path):
    with pytest.raises(gptfast.GptfastError, match="cannot download .*Offline.*GPTFAST_OPENAI_MIRROR"):
        openai.download("124M", tmp_path, mirror="http://127.0.0.1:9")
    with pytest.raises(gptfast.GptfastError, match="is no address"):
        openai.download("124M", tmp_path, mirror="nonsense")


def test_openai_names_load_from_the_cache(tmp_path, server, monkeypatch):
    monkeypatch.setenv("GPTFAST_CACHE_DIR", str(tmp_path))
    assert gptfast.load_weights("openai:124M").config.n_layer == 2
    check(tmp_path / "openai" / "124M", server)
    monkeypatch.setenv("GPTFAST_CACHE_DIR", "")
    with pytest.raises(gptfast.GptfastError, match="there is no cache"):
        gptfast.load_weights("openai:124M")


def test_the_command(tmp_path, server, capsys):
    assert main(["weights", "download", "124M", str(tmp_path / "x"), "--mirror", server.url]) == 0
    check(tmp_path / "x", server)
    assert "GPT-2 124M" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "x")
    (tmp_path / "x").touch()
    assert main(["weights", "download", "124M", str(tmp_path / "x")]) == 2
    assert "cannot write to" in capsys.readouterr().err
