"""The chat page in a real browser: conversation, hostile text, phone, dark mode, errors, token."""

import json
from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")
if not CHROMIUM.exists():
    pytest.skip(f"there is no {CHROMIUM}", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright (pip install playwright)")

HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> & \u202e?"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def open_page(browser, server):
    "A function that opens the chat page; at the end there must be no error in the console."
    opened, errors = [], []

    def begin(**context):
        opened.append(browser.new_context(**{"viewport": {"width": 390, "height": 780}, **context}))
        page = opened[-1].new_page()
        page.on("console", lambda message: "Failed to load resource" in message.text or errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server.url)
        return page

    yield begin
    for context in opened:
        context.close()
    assert errors == []


def ask(page, text):
    page.get_by_label("Question", exact=True).fill(text)
    page.keyboard.press("Enter")


def test_a_conversation_with_hostile_text(open_page):
    page, sent = open_page(permissions=["clipboard-read", "clipboard-write"]), []
    page.on("request", lambda request: sent.append(json.loads(request.post_data)) if request.method == "POST" else None)
    ask(page, HOSTILE)
    page.locator(".rewrite").wait_for()
    assert page.locator(".said").inner_text() == HOSTILE
    assert page.locator(".rewrite").inner_text() == HOSTILE.replace("\u202e", "")
    page.get_by_text("Add the answer").click()
    page.get_by_label("Answer to this question").fill("<b>Warsaw</b>")
    ask(page, "And when?")
    page.locator(".rewrite").nth(1).wait_for()
    assert sent[1] == {"query": "And when?", "history": [HOSTILE, "<b>Warsaw</b>"]}
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 1 and page.locator("img, b").count() == 0
    assert page.locator(".facts").nth(1).inner_text().split(" ms")[0].isdecimal()
    page.get_by_role("button", name="Copy the rewritten question").nth(1).click()
    assert page.evaluate("navigator.clipboard.readText()") == "And when?" and page.get_by_role("status").inner_text() == "Copied"
    page.reload()
    assert page.locator(".rewrite").count() == 2 and page.evaluate("window.hacked") is None
    page.get_by_role("button", name="New conversation").click()
    assert page.locator("li").count() == 0 and page.get_by_text("Ask a question, then").is_visible()


def test_a_phone_and_dark_mode(open_page):
    page = open_page(color_scheme="dark", is_mobile=True, has_touch=True)
    page.get_by_label("Question", exact=True).fill("x" * 300 + " " + "word " * 60)
    page.get_by_role("button", name="Send").tap()
    page.locator(".rewrite").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("parseFloat(getComputedStyle(document.querySelector('#query')).fontSize)") >= 16  # iOS zooms into less
    assert all(box.bounding_box()["height"] >= 44 for box in page.get_by_role("button").all())
    assert page.get_by_role("button", name="Send").bounding_box()["y"] < 780
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = open_page(color_scheme="light").evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, dark[4:-1].split(","))) < 120 and sum(map(int, light[4:-1].split(","))) > 650


def test_errors_are_told_and_tried_again(open_page):
    page, answers = open_page(), [(429, {"error": "queue: it is full"}), (502, "<html>"), (401, {"error": "token"})]
    headers = []

    def refuse(route):
        headers.append(route.request.headers)
        if not answers:
            return route.continue_()
        status, body = answers.pop(0)
        return route.fulfill(status=status, body=json.dumps(body) if isinstance(body, dict) else body)

    page.route("**/rewrite", refuse)
    ask(page, "When?")
    for words in ("queue: it is full", "The server answered with status 502.", "This server needs a token."):
        page.get_by_role("alert").get_by_text(words).wait_for()
        if words.endswith("token."):
            page.get_by_label("Token of this server").fill("a-token-of-twenty-letters")
        page.get_by_role("button", name="Try again").click()
    page.locator(".rewrite").wait_for()
    assert "authorization" not in headers[2] and headers[3]["authorization"] == "Bearer a-token-of-twenty-letters"
    page.route("**/rewrite", lambda route: route.abort())
    ask(page, "And?")
    page.get_by_text("The server does not answer.").wait_for()


def test_keys(open_page):
    page = open_page()
    page.get_by_label("Question", exact=True).fill("one")
    page.keyboard.press("Shift+Enter")
    assert page.get_by_label("Question", exact=True).input_value() == "one\n" and page.locator("li").count() == 0
    page.get_by_label("Question", exact=True).fill("  ")
    page.keyboard.press("Enter")
    assert page.locator("li").count() == 0


def test_the_page_of_the_api(open_page, server):
    page = open_page()
    page.goto(f"{server.url}docs")
    page.get_by_role("heading", name="POST /rewrite").wait_for()
    assert "curl http" in page.locator("#call").inner_text() and "maxLength" in page.locator("main").inner_text()
