"""The server's page in a real browser, on a real server of the mini bundle."""

import base64
import json
import mimetypes
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright
from screenshots import SHOTS, chromium, launch

from ernie_export.runtime.serving.http.app import STATIC

MEDIA = Path(__file__).parents[3] / "examples" / "media"
SHAPES, FEW, MANY, PASSING = (str(MEDIA / name) for name in ("shapes.png", "few.png", "many.jpg", "passing.mp4"))
KEY = "a-key-of-the-tests-1234"
# A file laid on the page: dropped from outside, or pasted.
GIVE = """async ([event, files]) => {
  const data = new DataTransfer();
  for (const [name, type, base64] of files)
    data.items.add(new File([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], name, { type }));
  const options = { bubbles: true, cancelable: true };
  if (event === "paste") document.body.dispatchEvent(new ClipboardEvent(event, { ...options, clipboardData: data }));
  else for (const name of ["dragenter", "dragover", event])
    document.body.dispatchEvent(new DragEvent(name, { ...options, dataTransfer: data }));
}"""

# An outline around what has the focus, or the ring around the box that it is in.
FOCUS_SHOWS = """() => {
  const style = getComputedStyle(document.activeElement), box = document.activeElement.closest(".box");
  return style.outlineStyle !== "none" || getComputedStyle(box).boxShadow.includes("0px 0px 0px 1px");
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if chromium() is None:
        reason = "no Chromium on this machine, so THE SERVER'S PAGE IS NOT TESTED: apt-get install chromium"
        if os.environ.get("ERNIE_BROWSER_TESTS") == "required":
            pytest.fail(reason)
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    expect.set_options(timeout=60_000)  # for a machine that does other things, too
    with sync_playwright() as playwright:
        with launch(playwright) as running:
            yield running


@pytest.fixture
def open_page(browser, server):
    """open_page(url, ...): the page in a fresh profile; its errors, and requests elsewhere, are checked at the end."""
    complaints: list[str] = []
    contexts = []

    def call(url: str = server.url, expected: str = "", **options: object) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)

        def complain(text: str) -> None:
            if not (expected and re.search(expected, text)):
                complaints.append(text)

        page.on("console", lambda message: complain(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complain(str(error)))
        page.on("request", lambda sent: None if sent.url.startswith((url, "blob:", "data:")) else complain(sent.url))
        page.goto(url)
        expect(page.locator("#health")).to_have_text("ready")
        return page

    yield call
    for context in contexts:
        context.close()
    assert complaints == []


def give(page: Page, event: str, *paths: str) -> None:
    files = [
        (Path(path).name, mimetypes.guess_type(path)[0] or "", base64.b64encode(Path(path).read_bytes()).decode())
        for path in paths
    ]
    page.evaluate(GIVE, [event, files])


def ask(page: Page, question: str, *paths: str) -> None:
    if paths:
        page.set_input_files("#files", list(paths))
    page.fill("#question", question)
    page.press("#question", "Enter")


def answer(page: Page, number: int = 0) -> str:
    """The text of the answer with this number, once it is whole."""
    turn = page.locator(".answer").nth(number)
    expect(turn).to_have_attribute("aria-busy", "false")
    return turn.locator(".text").inner_text()


def at_length(page: Page, tokens: int = 3000) -> None:
    """Let the server's answers be long, as the small model's never are."""

    def longer(route: Route) -> None:
        body = json.loads(route.request.post_data or "") | {"min_tokens": tokens, "max_tokens": tokens}
        route.continue_(post_data=json.dumps(body))

    page.route("**/v1/chat/completions", longer)


def events(deltas: Iterable[dict[str, object]], done: bool = True) -> str:
    """The body of a stream of these deltas."""
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + ("data: [DONE]\n\n" if done else "")


def says(*texts: str, done: bool = True) -> str:
    """The body of a stream of these texts."""
    return events(({"content": text} for text in texts), done)


def until(page: Page, expression: str) -> None:
    """Wait for an expression to hold. (Playwright's own way needs `eval`, which the page does not let.)"""
    deadline = time.monotonic() + 60
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"never true: {expression}"
        page.wait_for_timeout(20)


def violations(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {node['html']}" for rule in found for node in rule["nodes"]]


def test_a_conversation_of_pictures_and_clips(open_page):
    page = open_page()
    expect(page).to_have_title("mini")
    give(page, "drop", SHAPES)
    ask(page, "What colour is the triangle?")
    assert answer(page) == "red"
    expect(page.locator(".asked .caption")).to_have_text("Picture 1: 16 tokens 8×8 patches")
    figures = page.locator(".figures").nth(0).inner_text().split("\n")
    forms = (r"41 prompt tokens( \(\d+ reused\))?", r"first text after \d+\.\d\d s", r"2 answer tokens in \d+\.\d\d s")
    assert len(figures) >= len(forms) and all(re.fullmatch(form, figure) for form, figure in zip(forms, figures))
    ask(page, "Which shape moves?", PASSING)
    assert answer(page, 1) == "the green triangle"
    expect(page.locator(".asked .caption").nth(1)).to_have_text("Clip 1: 48 tokens 6 frames of 8×8 patches")
    assert "reused)" in page.locator(".figures").nth(1).inner_text()
    page.click("#new")
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.locator("#welcome")).to_be_visible()
    ask(page, "How many sides has a triangle?")
    assert answer(page) == "three"


def test_two_pictures_pasted_and_one_taken_away(open_page):
    page = open_page()
    give(page, "paste", FEW, SHAPES, MANY)
    expect(page.locator("#attached .medium")).to_have_count(3)
    page.click("[aria-label='Remove shapes.png']")
    ask(page, "Which picture has more shapes?")
    assert answer(page) == "the second"
    expect(page.locator(".asked .caption")).to_have_text(
        ["Picture 1: 6 tokens 4×6 patches", "Picture 2: 6 tokens 6×4 patches"]
    )
    shot = page.locator(".shot").nth(0)
    shot.click()
    lines = shot.evaluate("e => getComputedStyle(e, '::after').backgroundSize")
    assert lines == "calc(50%) 100%, 100% calc(33.3333%)" or lines == "50% 100%, 100% 33.3333%"


def test_tokens_stream_in_and_escape_stops_them(open_page, server):
    page = open_page()
    at_length(page)
    ask(page, "How many sides has a triangle?")
    text = page.locator(".answer .text")
    expect(text).to_contain_text("three")
    first = len(text.inner_text())
    until(page, f"document.querySelector('.answer .text').textContent.length > {first} + 20")
    expect(page.locator(".answer")).to_have_attribute("aria-busy", "true")
    expect(page.locator("#send")).to_have_accessible_name("Stop")
    page.keyboard.press("Escape")
    expect(page.locator(".answer")).to_have_attribute("aria-busy", "false")
    expect(page.locator(".figures")).to_have_text("Stopped")
    expect(page.locator("#send")).to_have_accessible_name("Send")
    stopped = text.inner_text()
    for _ in range(100):  # the server, too, works on it no longer
        running = urlopen(f"{server.url}/metrics").read().decode()
        if re.search(r"num_requests_running\{.*\} 0\.0", running):
            break
        page.wait_for_timeout(100)
    assert re.search(r"num_requests_running\{.*\} 0\.0", running)
    assert text.inner_text() == stopped
    page.unroute("**/v1/chat/completions")
    page.click("#new")
    ask(page, "How many sides has a triangle?")
    assert answer(page) == "three"


def test_the_button_stops_too_and_what_has_no_answer_goes_back(open_page):
    page = open_page()
    page.route("**/v1/chat/completions", lambda route: None)  # no answer at all
    ask(page, "Where is the square?", SHAPES)
    expect(page.locator(".answer")).to_have_count(1)
    page.click("#send")
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.locator("#question")).to_have_value("Where is the square?")
    expect(page.locator("#attached .medium")).to_have_count(1)
    page.unroute("**/v1/chat/completions")
    page.click("#send")
    assert answer(page) == "bottom left"


def test_what_goes_wrong_is_one_line_and_nothing_is_lost(open_page, tmp_path):
    page = open_page(expected="status of 400")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "broken.png").write_text("no picture")
    error = page.locator("#error")
    give(page, "drop", str(tmp_path / "notes.txt"), SHAPES)
    expect(error).to_have_text("notes.txt: expected a picture or a clip, found another kind of file")
    expect(page.locator("#attached .medium")).to_have_count(1)
    give(page, "drop", str(tmp_path / "broken.png"))
    ask(page, "What colour is the triangle?")
    expect(error).to_contain_text("found a file of another format")
    assert "\n" not in error.inner_text()
    expect(page.locator("#question")).to_have_value("What colour is the triangle?")
    page.click("[aria-label='Remove broken.png']")
    page.click("#send")
    assert answer(page) == "red"
    expect(error).to_be_hidden()


def test_a_stream_that_breaks_is_reported(open_page):
    page = open_page()
    body = says("half an ", done=False)
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    ask(page, "Hello?")
    expect(page.locator("#error")).to_have_text("The connection broke before the answer was whole.")
    assert answer(page) == "half an"
    fault = 'data: {"error":{"message":"internal error: the log says more"}}\n\ndata: [DONE]\n\n'
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=fault, content_type="text/event-stream"))
    ask(page, "Hello?")
    expect(page.locator("#error")).to_have_text("internal error: the log says more")
    expect(page.locator(".answer")).to_have_count(1)


def test_a_server_that_is_gone_is_reported(open_page, serving):
    with serving() as server:
        page = open_page(server.url, expected="ERR_CONNECTION_(REFUSED|RESET)")
    ask(page, "Hello?")
    expect(page.locator("#error")).to_have_text("The server can't be reached, or took the files for too large.")
    expect(page.locator("#health")).to_have_text("away")
    expect(page.locator("#question")).to_have_value("Hello?")


def test_a_key_is_asked_for(open_page, serving, tmp_path):
    (tmp_path / "keys").write_text(KEY)
    with serving("--api-key-file", tmp_path / "keys") as server:
        page = open_page(server.url, expected="status of 401")
        expect(page.locator("#key")).to_be_visible()
        expect(page.locator("#error")).to_be_hidden()
        expect(page.locator("#secret")).to_be_focused()
        assert violations(page) == []
        page.keyboard.type("another-key-than-that")
        page.keyboard.press("Enter")
        expect(page.locator("#error")).to_contain_text("expected a valid API key")
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#key")).to_be_hidden()
        expect(page.locator("#question")).to_be_focused()
        ask(page, "How many sides has a triangle?")
        assert answer(page) == "three"


def test_answers_are_text_and_never_markup(open_page):
    page = open_page()
    answered = (
        "<img src=x onerror=alert(1)><b>bold</b>\u2028 你好 ![x](http://x.example/y.png) [a](javascript:alert(1))"
    )
    parts = (answered[:9], answered[9:])
    page.route("**/*completions", lambda route: route.fulfill(body=says(*parts), content_type="text/event-stream"))
    ask(page, "<script>alert(1)</script>")
    answer(page)
    shown = answered.replace("[a](javascript:alert(1))", "a")
    assert (page.locator(".answer .text").text_content() or "").strip() == shown
    assert page.locator(".answer .text a[href]").count() == 0
    assert page.locator(".asked .text").text_content() == "<script>alert(1)</script>"
    assert page.locator(".turn img, .turn b, .turn script").count() == 0


def streams(page: Page, *deltas: dict[str, object]) -> list[dict[str, Any]]:
    """Let the server answer with these deltas; return the requests that it got, which grow."""
    asked: list[dict[str, Any]] = []

    def fulfil(route: Route) -> None:
        asked.append(json.loads(route.request.post_data or ""))
        route.fulfill(body=events(deltas), content_type="text/event-stream")

    page.route("**/v1/chat/completions", fulfil)
    return asked


MARKDOWN = """Two *words*:

| a | b |
| - | - |
| 1 | `2` |

```python
print("<b>")
```

1. [elsewhere](https://example.com)
"""


def test_markdown_has_tables_code_and_links(open_page):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    streams(page, {"content": MARKDOWN[:30]}, {"content": MARKDOWN[30:]})
    ask(page, "Show me.")
    answer(page)
    text = page.locator(".answer .text")
    assert text.locator("table td").all_inner_texts() == ["1", "2"] and text.locator("em").inner_text() == "words"
    assert text.locator("pre").inner_text().strip() == 'print("<b>")'
    link = text.locator("li a")
    assert (link.get_attribute("href"), link.get_attribute("target")) == ("https://example.com", "_blank")
    assert violations(page) == []
    page.get_by_role("button", name="Copy code").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()").strip() == 'print("<b>")'
    page.get_by_role("button", name="Copy", exact=True).last.click()
    until(page, "navigator.clipboard.readText().then((text) => text.includes('| - | - |'))")


def test_thoughts_are_folded_calls_shown_and_an_empty_answer_said(open_page):
    page = open_page()
    call = {"index": 0, "function": {"name": "look", "arguments": '{"at": 1}'}}
    streams(page, {"reasoning_content": "Let me "}, {"reasoning_content": "see."}, {"tool_calls": [call]})
    ask(page, "Look.")
    answer(page)
    thoughts = page.locator(".answer .thought")
    expect(thoughts).to_be_hidden()
    page.get_by_text("Thoughts").click()
    expect(thoughts).to_have_text("Let me see.")
    expect(page.locator(".calls")).to_have_text('calls look({"at": 1})')
    assert violations(page) == []
    page.unroute("**/v1/chat/completions")
    streams(page)
    ask(page, "Again.")
    assert answer(page, 1) == "The answer is empty."


def test_settings_go_with_every_question_and_stay(open_page):
    page = open_page()
    page.get_by_role("button", name="Settings").click()
    page.fill("#system", "Answer in French.")
    page.fill("#temperature", "0.5")
    page.fill("#max_tokens", "7")
    page.select_option("#thinking", "off")
    assert violations(page) == []
    page.get_by_role("button", name="Done").click()
    page.reload()
    asked = streams(page, {"content": "Oui."})
    ask(page, "Yes?")
    answer(page)
    assert asked[0]["messages"][0] == {"role": "system", "content": "Answer in French."}
    given = {name: asked[0][name] for name in ("temperature", "max_tokens", "chat_template_kwargs")}
    assert given == {"temperature": 0.5, "max_tokens": 7, "chat_template_kwargs": {"enable_thinking": False}}
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Reset").click()
    page.keyboard.press("Escape")
    ask(page, "And now?")
    answer(page, 1)
    assert asked[1]["messages"][0]["role"] == "user" and not {"temperature", "max_tokens"} & asked[1].keys()


def test_an_answer_is_made_again_and_a_question_changed(open_page):
    page = open_page()
    asked = streams(page, {"content": "One."})
    ask(page, "First?", SHAPES)
    answer(page)
    page.get_by_role("button", name="Regenerate").click()
    until(page, "document.querySelectorAll('.answer[aria-busy=false]').length === 1")
    assert len(asked) == 2 and asked[0] == asked[1]
    ask(page, "Second?")
    answer(page, 1)
    page.get_by_role("button", name="Edit").first.click()
    expect(page.locator("#question")).to_have_value("First?")
    assert page.locator(".turn").count() == 0 and page.locator("#attached .medium").count() == 1
    ask(page, "Changed?")
    answer(page)
    assert len(asked[3]["messages"]) == 1
    assert asked[3]["messages"][0]["content"][0] == asked[0]["messages"][0]["content"][0]


def test_a_conversation_outlives_a_reload_and_can_be_taken_along(open_page, bundle, tmp_path):
    page = open_page()
    ask(page, "What is in the picture?", SHAPES)
    first = answer(page)
    page.reload()
    assert answer(page) == first
    expect(page.locator(".asked img")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    download.value.save_as(tmp_path / "conversation.json")
    messages = json.loads((tmp_path / "conversation.json").read_text())
    assert [turn["role"] for turn in messages] == ["user", "assistant"] and messages[1]["content"] == first
    (tmp_path / "question.json").write_text(json.dumps(messages[:1]))
    command = [Path(sys.executable).with_name("ernie-run"), bundle, "--messages", tmp_path / "question.json"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == first
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".turn")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    assert answer(page) == first
    asked = streams(page, {"content": "Red."})
    ask(page, "What colour is the triangle?")
    answer(page, 1)
    assert asked[0]["messages"][:2] == messages
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".turn")).to_have_count(0)
    page.reload()
    expect(page.locator("#health")).to_have_text("ready")
    expect(page.locator(".turn")).to_have_count(0)


def test_a_sample_is_one_click_and_enter(open_page):
    page = open_page()
    page.get_by_role("button", name="What is in the picture?").click()
    expect(page.locator("#attached .medium")).to_have_count(1)
    page.press("#question", "Enter")
    assert answer(page) == "blue circle, red triangle, yellow square"
    for path in (STATIC / "samples").iterdir():
        assert path.read_bytes() == (MEDIA / path.name).read_bytes()


def test_everything_by_keyboard(open_page):
    page = open_page()
    page.on("filechooser", lambda chooser: chooser.set_files(SHAPES))
    expect(page.locator("#question")).to_be_focused()
    at_length(page)
    order = []
    page.focus(".skip")
    for _ in range(10):
        order.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        assert page.evaluate(FOCUS_SHOWS), f"the focus on {order[-1]} can't be seen"
        page.keyboard.press("Tab")
    samples = ["plain"] * 3
    assert order == ["skip", "settings", "new", "scroller", *samples, "choose", "question", "send"]
    page.focus("#choose")
    page.keyboard.press("Enter")
    expect(page.locator("#attached .medium")).to_have_count(1)
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type("What colour is the triangle?")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("And")
    expect(page.locator("#question")).to_have_value("What colour is the triangle?\nAnd")
    for _ in range(4):
        page.keyboard.press("Backspace")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .text")).to_contain_text("red")
    page.keyboard.press("Escape")
    expect(page.locator(".figures")).to_have_text("Stopped")
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type("One more")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.locator(".answer")).to_have_count(2)
    page.keyboard.press("Space")  # the same button, and the focus still on it
    expect(page.locator("#send")).to_have_accessible_name("Send")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_at_phone_width(open_page, scheme):
    page = open_page(viewport={"width": 360, "height": 640}, color_scheme=scheme, has_touch=True)
    assert violations(page) == []
    long = says("W" * 400, "\n", "a b " * 400)
    page.set_input_files("#files", [SHAPES, FEW, MANY, PASSING, SHAPES])
    assert violations(page) == []
    page.route("**/*completions", lambda route: route.fulfill(body=long, content_type="text/event-stream"))
    ask(page, "Q" * 300)
    answer(page)
    fits(page)
    page.unroute("**/*completions")
    page.click("#new")
    ask(page, "What colour is the circle in picture 2?", FEW, MANY)
    assert answer(page) == "purple"
    fits(page)
    assert violations(page) == []


def fits(page: Page) -> None:
    """Nothing is wider than the window, and the button to send is in it."""
    assert page.viewport_size is not None
    width = page.viewport_size["width"]
    height = page.viewport_size["height"]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("document.getElementById('scroller').scrollWidth") <= width
    box = page.locator("#send").bounding_box()
    assert box is not None and min(box["x"], box["y"], box["width"], box["height"]) >= 0
    assert box["x"] + box["width"] <= width and box["y"] + box["height"] <= height


def test_the_end_stays_in_view_unless_the_reader_goes_elsewhere(open_page):
    page = open_page(viewport={"width": 800, "height": 500})
    at_length(page)
    at_end = "(s => s.scrollHeight - s.scrollTop - s.clientHeight < 40)(document.getElementById('scroller'))"
    ask(page, "How many sides has a triangle?", SHAPES)
    until(page, "document.querySelector('.answer .text').textContent.length > 1500")
    until(page, at_end)
    page.locator("#scroller").hover()
    page.mouse.wheel(0, -400)
    until(page, f"!({at_end})")
    top = page.evaluate("document.getElementById('scroller').scrollTop")
    length = page.evaluate("document.querySelector('.answer .text').textContent.length")
    until(page, f"document.querySelector('.answer .text').textContent.length > {length} + 200")
    assert page.evaluate("document.getElementById('scroller').scrollTop") <= top
    page.keyboard.press("Escape")


def test_the_screenshots_can_be_taken_again(browser, bundle, tmp_path):
    command = [
        sys.executable,
        Path(__file__).resolve().parents[3] / "tools" / "screenshots.py",
        bundle,
        tmp_path / "shots",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, width, height, _, _ in SHOTS:
        path = tmp_path / "shots" / name
        assert Image.open(path).size == (2 * width, 2 * height) and path.stat().st_size < 200_000
