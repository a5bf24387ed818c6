"""The chat page in a real browser: it streams, stops, and shows what a model writes as text."""

from __future__ import annotations

import os
import re
import shutil
import threading

import pytest
from serving import serving

api = pytest.importorskip("playwright.sync_api", reason="the page is tested with playwright (make test installs it)")
pytest.importorskip("fastapi", reason="the server needs fastapi (the extra `serve`)")

from gptfast.serve.app import make_app  # noqa: E402

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium or Chrome on this machine (Debian, Ubuntu: apt install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.getuid() == 0 else [])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page that fails the test on any script error, refused resource, or request elsewhere."""
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.set_default_timeout(10_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
    page.on("request", lambda request: None if "//127.0.0.1" in request.url else wrong.append(request.url))
    yield page
    context.close()
    assert not [text for text in wrong if not text.startswith("data:")]


def send(page, text: str) -> None:
    page.get_by_label("Message (Enter").fill(text)
    page.keyboard.press("Enter")


def answers(page):
    return page.locator(".message.assistant span:last-child")


def test_it_streams_stops_and_remembers(assistant, script, page):
    script.text, script.gate = b"<img src=x><b>&amp; ", threading.Semaphore(0)
    with serving(make_app(assistant, rows=1)) as port:
        page.goto(f"http://127.0.0.1:{port}/")
        api.expect(page.get_by_role("heading")).to_have_text("tiny")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 29)"  # dark, as asked
        send(page, "q")
        script.gate.release(3)
        api.expect(answers(page)).to_have_text("<img")  # while it is being written
        api.expect(page.get_by_role("button", name="Send")).to_be_disabled()
        page.get_by_role("button", name="Stop").click()
        api.expect(page.get_by_role("button", name="Send")).to_be_enabled()
        script.gate.release(1000)
        with page.expect_request("**/v1/chat/completions") as request:
            send(page, "<i>")
        contents = [message["content"] for message in request.value.post_data_json["messages"]]
        assert contents == ["q", "<img", "<i>"]
        api.expect(page.locator(".notice")).to_contain_text("the context is full")  # 21 tokens after a prompt of 43
        api.expect(answers(page).nth(1)).to_contain_text("<img src=x><b>&amp;")
        with page.expect_request("**/v1/chat/completions") as request:
            send(page, "c")
        assert len(request.value.post_data_json["messages"]) == 3  # the oldest exchange has gone, and that is said
        api.expect(page.locator(".notice").nth(1)).to_contain_text("no longer fits")
        assert page.locator("#log :is(img, b, i)").count() == 0
        page.get_by_role("button", name="New chat").click()
        api.expect(page.locator(".message")).to_have_count(0)


def test_errors_are_said_and_the_key_is_asked_for(assistant, script, page):
    with serving(make_app(assistant, rows=1, key="s3cret")) as port:
        page.goto(f"http://127.0.0.1:{port}/")
        api.expect(page.get_by_role("alert")).to_contain_text("API key is missing")
        page.get_by_label("API key").fill("s3cret")
        page.get_by_label("API key").press("Tab")
        api.expect(page.get_by_role("heading")).to_have_text("tiny")
        send(page, "x" * 80)
        api.expect(page.get_by_role("alert")).to_contain_text("context holds 64")
        api.expect(page.get_by_label("Message (Enter")).to_have_value("x" * 80)  # what was typed is not lost
        api.expect(page.locator(".message")).to_have_count(0)
        held = []
        page.route("**/v1/chat/completions", lambda route: held.append(route))
        send(page, "q")
        page.get_by_label("Message (Enter").fill("typed meanwhile")
        held[0].abort()
        api.expect(page.get_by_label("Message (Enter")).to_have_value("q\ntyped meanwhile")


def test_every_control_has_a_name_and_the_keyboard_reaches_it(port, page):
    page.goto(f"http://127.0.0.1:{port}/")
    page.get_by_text("Settings").click()
    for control in page.locator("button:visible, input:visible, textarea:visible").all():
        label = control.evaluate("e => e.innerText || e.labels[0]?.innerText || ''")
        assert re.search(r"\w", label), control
    assert page.evaluate("document.documentElement.lang") == "en"
    page.get_by_label("Message (Enter").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "send"
