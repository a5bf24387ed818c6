"""`gptfast serve` from its command line to Ctrl-C, and what it refuses to serve."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from serving import SLOW

from gptfast.assistant import PLAIN, load_assistant
from gptfast.cli import main
from gptfast.errors import GptfastError
from gptfast.finetune.templates import TEMPLATES

pytest.importorskip("uvicorn", reason="the server needs uvicorn (the extra `serve`)")
from gptfast.serve.command import KEY, bind, require_key  # noqa: E402


@pytest.fixture(scope="module")
def folder(assistant, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    assistant.model.save_pretrained(path)
    return path


def refused(capsys, *argv: object) -> str:
    """The one line that the command line says."""
    assert main(["serve", *map(str, argv)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to a process of its own")
def test_it_serves_and_ends_at_ctrl_c_in_the_middle_of_an_answer(folder, tmp_path):
    # Installed beside uvicorn it would be used, and reads headers of any size.
    (tmp_path / "httptools.py").write_text("raise AssertionError('httptools must not be used')")
    command = [sys.executable, "-c", SLOW, "serve", str(folder), "--encoding", "bytes", "--port", "0"]
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path})
    try:
        said = server.stderr.readline() + server.stderr.readline()
        url = re.search(r"http://127.0.0.1:\d+", said)[0]
        assert "tiny" in said and "64 tokens" in said
        body = json.dumps({"prompt": "a", "max_tokens": 60, "n": 16, "stream": True}).encode()
        request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as response:
            assert response.readline().startswith(b"data: {")
            server.send_signal(signal.SIGINT)
            assert response.read().endswith(
                b'data: {"error":{"message":"the server is stopping","type":"server_error",'
                b'"param":null,"code":null}}\n\n'
            )
        assert server.wait(20) == 130
        assert server.stderr.read().strip() == "stopped"
    finally:
        server.kill()
        server.stderr.close()


def test_a_port_in_use_is_one_clear_error(capsys, folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused(capsys, folder, "--port", port)
    assert line.startswith(f"error: cannot listen on 127.0.0.1, port {port}: ") and "another --port" in line


def test_elsewhere_needs_a_key(capsys, folder, monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    assert "set a key in GPTFAST_API_KEY" in refused(capsys, folder, "--host", "0.0.0.0", "--port", 0)
    for key in ("", " ", "k\n", "sch\xfc"):
        assert "printable ASCII" in refused(capsys, folder, "--api-key", key, "--port", 0)
    monkeypatch.setenv(KEY, "from-the-environment")
    with bind("0.0.0.0", 0) as everywhere, bind("localhost", 0) as here:
        assert require_key(everywhere, None) == require_key(here, None) == "from-the-environment"
        assert require_key(everywhere, "flag") == "flag"
        monkeypatch.delenv(KEY)
        assert require_key(here, None) is None


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--port", "70000"], "--port is 70000"),
        (["--host", "no.such.host.invalid"], "give an address of this machine"),
        (["--host", "203.0.113.9", "--api-key", "k"], "choose another"),
        (["--rows", "0"], "--rows is 0"),
        (["--waiting", "0"], "--waiting is 0"),
    ],
)
def test_flags_out_of_range(capsys, folder, flags, message):
    assert message in refused(
        capsys, folder, "--encoding", "bytes", *(flags if "--port" in flags else [*flags, "--port", "0"])
    )


def test_a_classifier_is_one_clear_error(capsys, folder, assistant, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "best")
    values = json.loads((tmp_path / "best/config.json").read_text())
    for mark in ({"architectures": ["GPT2ForSequenceClassification"]}, {"gptfast_classifier": {}}):
        (tmp_path / "best/config.json").write_text(json.dumps(values | mark))
        assert "holds a classifier" in refused(capsys, tmp_path, "--port", 0)
    assert "no file or folder" in refused(capsys, tmp_path / "nothing", "--port", 0)


def test_a_fine_tuned_model_speaks_its_template(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "best")
    TEMPLATES["phi3"].save(tmp_path / "best")
    tuned, base = load_assistant(tmp_path, encoding="bytes"), load_assistant(folder, encoding="bytes")
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    assert bytes(tuned.prompt(messages)).decode() == "<|system|>\nS<|end|>\n<|user|>\nQ<|end|>\n<|assistant|>\n"
    assert tuned.name == tmp_path.name and "<|end|>" in tuned.template.stops()
    assert base.template is PLAIN and bytes(base.prompt(messages)).decode() == "system: S\nuser: Q\nassistant:"
    assert base.template.stops() == ["\nuser:"]
    with pytest.raises(GptfastError, match="must be the user's"):
        base.prompt([*messages, {"role": "assistant", "content": "A"}])


def test_without_its_packages_it_names_the_extra(capsys, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'gptfast-kernels[serve]'" in refused(capsys, folder)
