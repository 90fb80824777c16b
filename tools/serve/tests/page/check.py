"""Checks the web page of `yuan serve` in Chromium, against the demo model.

    apt-get install chromium
    python3 -m pip install --target target/page playwright axe-playwright-python
    PYTHONPATH=target/page python3 tools/serve/tests/page/check.py target/debug/yuan [FOLDER FOR PICTURES]
"""

import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

PSALM, POEM = "Psalms 3:1", "春日山中 李白"
# One for each answer: otherwise one in many runs would have an answer without a word.
SEEDS = itertools.count(1)
# What a model may write, harmless and not.
WRITTEN = """# Title

Some *words* and `code`, a price of $5 and one of $6, $e^{i\\pi} = -1$ and

$$\\int_0^1 x^2\\,dx = \\frac13$$

```python
def f(x): return "a" + x
```

| a | b |
|---|---|
| 1 | 2 |

<img src=x onerror="window.harmed = 1"><script>window.harmed = 1</script>
[bad](javascript:window.harmed=1) [good](https://example.org) ![picture](https://example.org/a.png)
"""


def serve(program, *options, **environment):
    """The demo model on a free port: the process and its address."""
    server = subprocess.Popen(
        [program, "serve", "--demo", "--port", "0", *options],
        stderr=subprocess.PIPE, text=True, encoding="utf-8", env={**os.environ, **environment},
    )
    said = []
    for line in server.stderr:
        said.append(line)
        if found := re.search(r"served at (http://[\d.]+:\d+)", line):
            threading.Thread(target=server.stderr.read, daemon=True).start()
            return server, found[1]
    raise SystemExit("the server has ended:\n" + "".join(said))


def end(server):
    server.send_signal(signal.SIGTERM)
    ended = server.wait(60)
    assert ended == 0, f"the server has ended with {ended}"


class Visit:
    """A browser of its own, with one page that must not complain."""

    def __init__(self, browser, address, language="en-US", width=1440, theme="light", motion="no-preference"):
        self.context = browser.new_context(
            locale=language, viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion=motion, accept_downloads=True
        )
        self.address, self.complaints = address, []
        self.page = self.open()

    def open(self):
        page = self.context.new_page()
        page.on("console", lambda m: m.type in ("error", "warning") and self.complaints.append(f"{m.text} {m.location}"))
        page.on("pageerror", lambda e: self.complaints.append(str(e)))
        page.route("**/v1/chat/completions", self.seeded)
        page.goto(self.address)
        return page

    @staticmethod
    def seeded(route):
        body = json.loads(route.request.post_data)
        route.continue_(post_data=json.dumps({"seed": next(SEEDS), **body}))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            assert not self.complaints, self.complaints
        self.context.close()

    def ask(self, text, page=None):
        """Sends a message, and gives the answer when it is there."""
        page = page or self.page
        page.fill("#prompt", text)
        page.press("#prompt", "Enter")
        return self.answer(page)

    def answer(self, page=None):
        page = page or self.page
        expect(page.locator("#send")).to_be_visible(timeout=60_000)
        expect(page.locator(".message.assistant .stats").last).to_contain_text("/", timeout=60_000)
        return page.locator(".message.assistant .text").last.inner_text()

    def long(self):
        """From now on answers are long: several in one, one after the other."""

        def more(route):
            body = json.loads(route.request.post_data)
            route.continue_(post_data=json.dumps({**body, "ignore_eos": True, "max_tokens": 900, "n": 64}))

        self.page.route("**/v1/chat/completions", more)

    def accessible(self, what):
        found = [
            f"{v['id']}: {v['help']}: {[n['html'] for n in v['nodes']][:3]}"
            for v in Axe().run(self.page).response["violations"]
            if v["impact"] in ("serious", "critical")
        ]
        assert not found, f"{what}: {found}"

    def fits(self, what):
        wide = self.page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1], f"{what}: {wide}"


def shown(visit):
    return visit.page.locator(".message .text").all_inner_texts()


def conversation(browser, address, folder):
    """Chat, versions, history, files."""
    with Visit(browser, address) as visit:
        page = visit.page
        expect(page.locator("#model")).to_contain_text("demo")
        page.evaluate(
            "new MutationObserver(all => (window.told ??= []).push(...all.flatMap(one => [...one.addedNodes].map(node => node.data))))"
            ".observe(document.getElementById('progress'), {childList: true})"
        )
        first = visit.ask(PSALM)
        assert first, "no answer"
        assert any(re.match(r"Reading the prompt: 0 of \d+ tokens", text) for text in page.evaluate("told")), page.evaluate("told")
        expect(page.locator("#gauge-text")).to_contain_text("of 1,024 tokens")
        expect(page.locator("#title")).to_have_text(PSALM)

        # Another answer, and back to the first.
        page.click(".regenerate")
        second = visit.answer()
        expect(page.locator(".assistant .which")).to_have_text("2/2")
        page.click(".assistant [aria-label='Previous version']")
        expect(page.locator(".assistant .which")).to_have_text("1/2")
        assert shown(visit) == [PSALM, first]
        page.click(".assistant [aria-label='Next version']")
        assert shown(visit) == [PSALM, second]

        # Another question: a branch.
        page.click(".user .edit")
        page.fill(".edit-form textarea", "Psalms 1:1")
        page.keyboard.press("Enter")
        third = visit.answer()
        assert shown(visit) == ["Psalms 1:1", third]
        page.click(".user [aria-label='Previous version']")
        assert shown(visit) == [PSALM, second]
        # The conversation goes on from there.
        visit.ask("Psalms 4:1")
        whole = shown(visit)
        assert len(whole) == 4

        # An input method's Enter ends a word and sends nothing; with Shift it is a new line.
        page.fill("#prompt", "chun")
        page.evaluate("document.getElementById('prompt').dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true}))")
        page.press("#prompt", "Shift+Enter")
        assert page.input_value("#prompt") == "chun\n" and len(shown(visit)) == 4
        page.fill("#prompt", "")

        # Everything is there again.
        page.reload()
        expect(page.locator(".message")).to_have_count(4)
        assert shown(visit) == whole
        expect(page.locator(".user .which").first).to_have_text("1/2")

        # Into a file and out of it.
        with page.expect_download() as download:
            page.click("#export")
        file = folder / "conversations.json"
        download.value.save_as(file)
        page.click("#new")
        expect(page.locator(".message")).to_have_count(0)
        page.hover(".chats li")
        page.click(".delete")
        expect(page.locator(".chats li")).to_have_count(0)
        page.click("#toast button")
        expect(page.locator(".message")).to_have_count(4)
        page.hover(".chats li")
        page.click(".delete")
        page.set_input_files("#import-file", files=[{"name": "a.json", "mimeType": "application/json", "buffer": b"{\"a\": 1}"}])
        expect(page.locator("#toast")).to_contain_text("no conversations")
        page.set_input_files("#import-file", file)
        expect(page.locator(".chats li")).to_have_count(1)
        page.click(".chat")
        assert shown(visit) == whole
        page.click("#new")
        visit.ask(POEM)
        expect(page.locator(".chats li")).to_have_count(2)
        page.fill("#search", "李白")
        expect(page.locator(".chats li")).to_have_count(1)
        page.fill("#search", "nowhere to be found")
        expect(page.locator("#no-chats")).to_have_text("Nothing found.")


def stopping(browser, address):
    """An answer is stopped; while it runs, the queue is full for others."""
    with Visit(browser, address) as visit:
        page, other = visit.page, visit.open()
        visit.long()
        page.fill("#prompt", PSALM)
        page.press("#prompt", "Enter")
        expect(page.locator(".assistant .text")).to_contain_text(re.compile(r"\w+ \w+"))
        other.fill("#prompt", PSALM)
        other.press("#prompt", "Enter")
        expect(other.locator("#thread [role=alert]")).to_contain_text("The server is busy")
        page.click("#stop")
        expect(page.locator(".assistant .stats")).to_contain_text("Stopped.")
        # What has come stays when the page goes away.
        page.click("#new")
        page.fill("#prompt", "Psalms 5:1")
        page.press("#prompt", "Enter")
        expect(page.locator("#stop")).to_be_visible()
        written = "all => all.some(chat => chat.title === 'Psalms 5:1' && Object.values(chat.nodes).some(node => node.note === 'stopped' && node.text))"
        while not page.evaluate(f"import('/page/store.js').then(store => store.all()).then({written})"):
            page.wait_for_timeout(50)
        page.reload()
        expect(page.locator(".user .text")).to_have_text("Psalms 5:1")
        expect(page.locator(".assistant .stats")).to_contain_text("Stopped.")
        assert shown(visit)[1]
        # What is deleted while it is answered stays away; the other page's conversation is there.
        page.click("#new")
        page.fill("#prompt", POEM)
        page.press("#prompt", "Enter")
        expect(page.locator("#stop")).to_be_visible()
        page.hover(".chats li")
        page.locator(".delete").first.click()
        expect(page.locator("#send")).to_be_visible()
        # When the browser has done it.
        expect(page.locator("#toast")).to_contain_text("Deleted.")
        page.reload()
        expect(page.locator(".chats li")).to_have_count(3)
        expect(page.locator(".chats")).not_to_contain_text(POEM)
        # Its sequence is free within a pass.
        for _ in range(50):
            other.click(".note button")
            expect(other.locator("#send")).to_be_visible(timeout=60_000)
            if other.locator(".message.assistant").count():
                break
        expect(other.locator(".message.assistant .text")).not_to_be_empty()
        # The browser writes down each refusal; there were no others.
        visit.complaints = [c for c in visit.complaints if "429" not in c]


def markdown(browser, address):
    """What a model writes is shown, and never run."""
    with Visit(browser, address) as visit:
        page = visit.page
        chunks = [{"choices": [{"delta": {"content": WRITTEN[i : i + 7]}}]} for i in range(0, len(WRITTEN), 7)]
        end = {"choices": [{"delta": {}, "finish_reason": "stop"}], "timings": {"predicted_n": 9, "predicted_per_second": 9}}
        events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in [*chunks, end]) + "data: [DONE]\n\n"
        page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=events))
        visit.ask("x")
        answer = page.locator(".assistant .text")
        expect(answer.locator(".katex")).to_have_count(2)
        expect(answer.locator(".katex-display")).to_have_count(1)
        expect(answer.locator(".hljs-keyword").first).to_have_text("def")
        expect(answer.locator("td")).to_have_count(2)
        expect(answer).to_contain_text("a price of $5 and one of $6")
        expect(answer.locator("img, script")).to_have_count(0)
        links = answer.locator("a").evaluate_all("links => links.map(link => link.href)")
        assert links == ["https://example.org/", "https://example.org/a.png"], links
        assert page.evaluate("window.harmed") is None
        visit.accessible("an answer with everything")
        visit.fits("an answer with everything")


def settings(browser, address):
    """What is set is sent, and stays."""
    with Visit(browser, address) as visit:
        page = visit.page
        for name, value in [("temperature", "0"), ("max_tokens", "6"), ("system", "Be brief.")]:
            page.click("#settings-open")
            page.fill(f"#set-{name}", value)
            page.click("#save")
            expect(page.locator("#settings")).to_be_hidden()
        page.reload()
        with page.expect_request("**/v1/chat/completions") as request:
            first = visit.ask(PSALM)
        sent = json.loads(request.value.post_data)
        assert (sent["temperature"], sent["max_tokens"]) == (0, 6) and "top_p" not in sent, sent
        assert sent["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PSALM}], sent
        expect(page.locator(".stats")).to_contain_text("has reached its limit")
        page.click(".regenerate")
        assert visit.answer() == first, "the best tokens are always the same"
        page.click("#settings-open")
        page.click("#reset")
        page.click("#save")
        with page.expect_request("**/v1/chat/completions") as request:
            visit.ask("Psalms 4:1")
        assert "temperature" not in json.loads(request.value.post_data)


def experts(browser, address):
    """The map moves, tells its figures, and can be walked over with keys."""
    picture = "document.querySelector('#grid canvas').toDataURL()"
    for motion in ["no-preference", "reduce"]:
        with Visit(browser, address, motion=motion) as visit:
            page = visit.page
            expect(page.locator("#figures dd").first).to_be_visible()
            before = page.evaluate(picture)
            visit.ask(PSALM)
            page.wait_for_function(f"before => {picture} !== before", arg=before)
            page.focus("#grid")
            page.keyboard.press("ArrowRight")
            page.keyboard.press("ArrowDown")
            expect(page.locator("#tip")).to_have_text(re.compile(r"Layer 2, expert 2: [\d,]+ tokens, (in memory|on the drive)"))
            page.click("#table-box summary")
            expect(page.locator("#table tr")).to_have_count(3)
            visit.accessible("the map with its table")
            if motion == "no-preference":
                # It fades.
                page.wait_for_timeout(300)
                moving = page.evaluate(picture)
                page.wait_for_function(f"before => {picture} !== before", arg=moving)
            told = page.evaluate("fetch('experts', {headers: {Accept: 'application/json'}}).then(r => r.json())")
            # Drafts that were run have chosen experts, too, whether they were right or not.
            figures = page.evaluate("fetch('metrics').then(r => r.text())")
            run = int(float(re.search(r"^yuan_pass_tokens_total (\S+)$", figures, re.M)[1]))
            assert run >= told["tokens"] and all(sum(row) == 2 * run for row in told["chosen"]), (run, told)


def looks(browser, address, pictures):
    """Both themes, narrow and wide, both languages: nothing sticks out, and nobody is shut out."""
    for language, question, greeting in [("en-US", PSALM, "What shall we talk about?"), ("zh-CN", POEM, "想聊点什么？")]:
        for width in [360, 1440]:
            for theme in ["light", "dark"]:
                what = f"{language[:2]}-{width}-{theme}"
                with Visit(browser, address, language, width, theme) as visit:
                    page = visit.page
                    expect(page.locator("#model")).to_contain_text("demo")
                    expect(page.locator(".hello-text")).to_have_text(greeting)
                    visit.fits(what)
                    visit.ask(question)
                    visit.fits(what)
                    visit.accessible(what)
                    keep(page, pictures, what)
                    page.click("#settings-open")
                    visit.accessible(f"{what}, settings")
                    keep(page, pictures, f"{what}-settings")
                    page.keyboard.press("Escape")
                    if width == 360:
                        for part in ["side", "map"]:
                            page.click(f"#{part}-open")
                            expect(page.locator(f"#{part}")).to_be_visible()
                            visit.fits(f"{what}, {part}")
                            visit.accessible(f"{what}, {part}")
                            keep(page, pictures, f"{what}-{part}")
                            page.keyboard.press("Escape")
                            expect(page.locator(f"#{part}")).to_be_hidden()
    with Visit(browser, address) as visit:
        page = visit.page
        ground = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(ground)
        [page.click("#theme") for _ in range(2)]
        assert page.evaluate(ground) != light
        page.click("#language")
        expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
        page.reload()
        expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
        assert page.evaluate(ground) != light, "the theme stays"


def keep(page, pictures, name):
    if pictures:
        page.screenshot(path=pictures / f"{name}.png")


def key(browser, address):
    """The page is there without a key, and asks for it."""
    with Visit(browser, address) as visit:
        page = visit.page
        expect(page.locator("#settings-note")).to_have_text("This server asks for a key.")
        page.fill("#set-key", "open sesame")
        page.click("#save")
        expect(page.locator("#model")).to_contain_text("demo")
        assert visit.ask(PSALM)
        # The browser writes down each refusal, of which there were some before.
        visit.complaints = [c for c in visit.complaints if "401" not in c]


def main():
    program = sys.argv[1]
    pictures = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else None
    folder = pathlib.Path("target/page-check")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        # An answer that is stopped counts experts of a pass that has not ended, so the map comes before it.
        checks = [(conversation, [folder]), (experts, []), (stopping, []), (markdown, []), (settings, []), (looks, [pictures])]
        server, address = serve(program, "--sequences", "1", "--queue", "0")
        try:
            for check, more in checks:
                check(browser, address, *more)
                print(f"{check.__name__}: passed", flush=True)
            # A page that looks on does not keep the server.
            with Visit(browser, address) as visit:
                expect(visit.page.locator("#figures dd").first).to_be_visible()
                end(server)
                visit.complaints.clear()
        finally:
            server.kill()
        server, address = serve(program, YUAN_API_KEY="open sesame")
        try:
            key(browser, address)
            print("key: passed", flush=True)
            end(server)
        finally:
            server.kill()
        browser.close()


if __name__ == "__main__":
    main()
