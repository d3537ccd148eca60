"""The page at `/` in a real browser, over the demo model where its answer matters."""

import json
from pathlib import Path

import pytest
from fake_server import MODEL, scripted
from selenium.webdriver.common.keys import Keys

ROOT = Path(__file__).parents[2]
MEDIA = ROOT / "examples" / "media"
# The demo model falls into a loop over it, and goes on until there is no more room.
ENDLESS = "Reverse the order of " + ", ".join(["bike, table, moon, orange, lamp, black"] * 60)
ABORTED = 'mimo_engine_requests_total{finish_reason="abort"}'
ALARM = {
    "type": "function",
    "function": {"name": "alarm", "parameters": {"type": "object", "properties": {}}},
}
OWNED = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def test_a_sum_is_answered_with_its_thought_folded(demo):
    demo.set(temperature=0)
    assert demo.ask("What is 47 + 85?") == "132"
    (thought,) = demo.all("details.thought")
    assert thought.get_attribute("open") is None
    summary = thought.find_element("css selector", "summary")
    assert summary.text.startswith("Thought for")
    assert summary.text.endswith("39 tokens")
    summary.click()
    assert "so 132" in thought.text
    (figures,) = demo.texts(".answer .foot > span")
    assert "TTFT" in figures
    assert "acceptance length" in figures
    assert "43 out" in figures
    assert demo.texts("#model") == ["demo"]


def test_thought_and_answer_are_seen_while_they_come(fake):
    # Each would last for many seconds, and is stopped once it has been seen.
    fake.send(scripted("<think>" + "First I count. " * 200 + "</think>It is so."))
    summary = fake.wait(lambda: next(iter(fake.texts("summary")), ""))
    assert summary.startswith("Thinking,")
    assert summary.endswith("tokens")
    fake.one("#stop").click()
    fake.wait(fake.is_idle)
    assert fake.one("summary").text.startswith("Thought for")
    whole = ("It is so. " * 200).strip()
    fake.send(scripted(whole))
    some = fake.wait(lambda: next(iter(fake.texts(".answer:last-of-type .prose")), ""))
    assert fake.one("#stop").is_displayed()
    fake.wait(lambda: "tokens/s" in fake.texts(".answer:last-of-type .foot > span")[0])
    fake.one("#stop").click()
    answer = fake.answer()
    assert answer.startswith(some)
    assert whole.startswith(answer)
    assert answer != whole


def test_enter_sends_and_shift_enter_breaks_the_line(fake):
    fake.type("one")
    fake.press(Keys.SHIFT, Keys.ENTER)
    fake.send("two")
    assert "one\ntwo" in fake.answer()
    assert fake.texts(".user .text") == ["one\ntwo"]


@pytest.mark.parametrize("by", ["button", "key"])
def test_stopping_ends_the_request_on_the_server(demo, by):
    aborted = demo.metric(ABORTED)
    demo.set(temperature=0)
    demo.send(ENDLESS)
    demo.wait(lambda: len(demo.texts(".answer .prose")[0]) > 20)
    # Speed and acceptance are there while the answer comes.
    demo.wait(lambda: "acceptance length" in demo.texts(".answer .foot > span")[0])
    assert "tokens/s" in demo.texts(".answer .foot > span")[0]
    assert demo.one("#stop").is_displayed()
    if by == "button":
        demo.one("#stop").click()
    else:
        demo.press(Keys.ESCAPE)
    assert demo.answer()
    assert demo.texts(".answer .foot > span")[0].endswith("ended by stop button")
    demo.wait(lambda: demo.metric(ABORTED) == aborted + 1)
    demo.wait(lambda: demo.metric("mimo_engine_requests_running") == 0)


def test_a_dropped_image_is_seen(demo):
    demo.set(temperature=0)
    demo.hand_over(MEDIA / "digits.png", "image/png", "drop", "#log")
    (preview,) = demo.all("#media img")
    demo.wait(lambda: int(preview.get_property("naturalWidth")) > 0)
    assert demo.ask("Which digits are shown?") == "4 2 8"
    assert len(demo.all(".user img")) == 1
    assert not demo.all("#media img")


def test_a_pasted_sound_is_heard(demo):
    demo.set(temperature=0)
    demo.hand_over(MEDIA / "digits.opus", "audio/ogg", "paste", "#prompt")
    (preview,) = demo.all("#media audio")
    demo.wait(lambda: float(preview.get_property("duration") or 0) > 0)
    assert demo.ask("What number do you hear?") == "3 9 0"


def test_a_chosen_video_is_watched_with_its_sound(demo):
    demo.set(temperature=0)
    demo.choose(MEDIA / "flash_and_beep.mkv")
    assert demo.ask("Flash or beep: which was first?") == "beep"
    assert len(demo.all(".user video")) == 1


def test_a_taken_back_picture_is_not_sent(fake):
    fake.choose(MEDIA / "digits.png")
    fake.one("#media button").click()
    assert "nothing but words" in fake.ask("nothing but words")


def test_a_file_of_another_kind_is_refused_by_name(fake):
    fake.one("#files").send_keys(str(ROOT / "LICENSE"))
    fake.wait(lambda: fake.texts(".error"))
    assert "LICENSE cannot be sent" in fake.texts(".error")[0]


def test_a_tool_is_called_and_its_result_goes_on_with_the_conversation(demo):
    demo.set(temperature=0)
    demo.all("#starters button")[-1].click()
    demo.wait(lambda: demo.all(".block textarea"))
    assert demo.texts(".block b") == ["get_weather"]
    assert json.loads(demo.one(".block pre").text) == {"city": "London"}
    demo.one(".block textarea").send_keys('{"degrees": 21, "wind": 14}' + Keys.ENTER)
    demo.wait(lambda: len(demo.all(".answer")) == 2)
    assert demo.answer() == "It is 21 degrees in London."
    assert demo.texts(".block .result") == ['{"degrees": 21, "wind": 14}']


def test_a_demanded_call_may_be_left_without_a_result(demo):
    demo.set(temperature=0, tools=json.dumps([ALARM]), tool_choice="required")
    demo.send("What is 1 + 1?")
    demo.wait(lambda: demo.all(".block textarea"))
    demo.set(tool_choice="none")
    demo.ask("What is 47 + 85?")
    assert len(demo.all(".answer")) == 2
    assert not demo.all(".block textarea")


def test_earlier_turns_are_sent_again_and_may_be_changed(fake):
    # The fake engine says its prompt.
    fake.set(system="You are a parrot.")
    fake.ask("the first words")
    second = fake.ask("the second words")
    assert second.count("the first words") == 2
    assert "You are a parrot." in second
    fake.driver.execute_script("arguments[0].click()", fake.all(".user .foot button")[1])
    assert fake.one("#prompt").get_property("value") == "the first words"
    assert not fake.all("article")
    assert "the second words" not in fake.ask("")
    fake.all(".answer .foot button")[-1].click()
    assert "the first words" in fake.answer()
    assert len(fake.all("article")) == 2


def test_what_the_model_and_the_user_write_is_never_markup(fake):
    answer = f"""<think>{OWNED}</think>{OWNED}

# {OWNED}
- {OWNED}
> **{OWNED}**

| {OWNED} | `{OWNED}` |
|---|---|

```{OWNED}
{OWNED}
```
[x](javascript:document.title='owned')
<tool_call>
<function=alarm>
<parameter=x>{OWNED}</parameter>
</function>
</tool_call>"""
    fake.set(seed=8, tools=json.dumps([ALARM]))
    fake.send(scripted(answer))
    fake.wait(lambda: fake.all(".block textarea"))
    fake.one(".block textarea").send_keys(OWNED)
    fake.one(".block ~ .button").click()
    fake.wait(lambda: len(fake.all(".answer")) == 2)
    fake.wait(fake.is_idle)
    prose = [f".prose {tag}" for tag in ("p", "h3", "li", "strong", "th", "th code", "pre")]
    for part in (".user .text", ".thought div", ".result", *prose):
        assert OWNED in fake.one(part).get_property("textContent")
    assert "<script>" in fake.one(".block:has(b) pre").get_property("textContent")
    assert not fake.all("#log :is(img, script, a)")
    assert fake.driver.title == "mimo-engine"


def test_the_policy_runs_no_script_but_the_pages_own(fake):
    tried = fake.driver.execute_async_script("""
        const done = arguments[0], said = [];
        document.addEventListener("securitypolicyviolation", ({ effectiveDirective }) => {
          said.push(effectiveDirective);
        });
        try { document.body.innerHTML += "<img src=x onerror='document.title = 1'>"; } catch {}
        document.createElement("img").src = "https://a.test/";
        fetch("https://a.test/").catch(() => setTimeout(() => done(said), 50));
    """)
    assert {"require-trusted-types-for", "img-src", "connect-src"} <= set(tried)
    fake.driver.get_log("browser")


def test_markdown_is_shown_as_it_is_meant(fake):
    fake.set(seed=8)
    fake.ask(
        scripted(
            "## Steps\n\n1. *one*\n   - inner **bold**\n2. two\n\n"
            "Text with `code`\nin two lines.\n\n"
            "| a | b |\n|---|:-:|\n| 1 | 2 * 3 * 4 |\n\n---\n\n```python\nx = '**'\n\n- y\n```"
        )
    )
    assert fake.texts(".prose h3") == ["Steps"]
    assert fake.texts(".prose > ol > li > ul > li") == ["inner bold"]
    assert fake.texts("em, strong, .prose :not(pre) > code") == ["one", "bold", "code"]
    assert fake.texts(".prose th, .prose td") == ["a", "b", "1", "2 * 3 * 4"]
    assert fake.one(".prose pre").get_property("textContent") == "x = '**'\n\n- y"
    assert fake.texts(".prose .block span") == ["python"]
    assert len(fake.all(".prose hr")) == 1


@pytest.mark.parametrize(
    ("settings", "message", "kind"),
    [
        ({"temperature": -1}, "temperature", "HTTP 400 · invalid_request_error"),
        ({"tools": "[1]"}, "tools", "HTTP 400 · invalid_request_error"),
        ({"tools": "nonsense"}, "not JSON", "SyntaxError"),
        ({"seed": 14}, "broken logits", "server_error"),
    ],
)
def test_an_error_is_shown_as_the_server_gives_it(fake, settings, message, kind):
    fake.set(**settings)
    fake.send("Anything.")
    fake.wait(lambda: fake.texts(".error"))
    assert message in fake.texts(".error")[0]
    assert kind in fake.texts(".error code")[0]
    fake.set(temperature=0, tools=" ", seed=1)
    fake.one(".error button").click()
    assert fake.answer()
    assert not fake.texts(".error")


def test_a_server_with_keys_is_asked_with_the_one_that_is_typed(open_page, keyed_server):
    page = open_page(keyed_server.url)
    page.wait(lambda: page.one("[name=key]").is_displayed())
    assert "API key" in page.one("#model.bad").text
    page.one("[name=key]").send_keys("sk-wrong", Keys.TAB)
    page.send("Hello.")
    page.wait(lambda: page.texts(".error"))
    assert "HTTP 401" in page.texts(".error code")[0]
    page.one("[name=key]").clear()
    page.one("[name=key]").send_keys("sk-secret", Keys.TAB)
    page.wait(lambda: page.texts("#model") == [MODEL])
    page.one(".error button").click()
    assert "Hello." in page.answer()


def test_settings_outlive_a_reload_but_not_the_tab(fake):
    fake.set(key="sk-secret", temperature="0.5")
    fake.ask("Hello.")
    fake.driver.refresh()
    assert fake.one("[name=key]").get_property("value") == "sk-secret"
    assert fake.one("[name=temperature]").get_property("value") == "0.5"
    assert not fake.all("article")
    assert fake.driver.execute_script("return localStorage.length + document.cookie.length") == 0
    first = fake.driver.current_window_handle
    fake.driver.switch_to.new_window("tab")
    try:
        fake.driver.get(fake.url)
        assert fake.one("[name=key]").get_property("value") == ""
    finally:
        fake.driver.close()
        fake.driver.switch_to.window(first)


def test_on_a_phone_nothing_sticks_out(open_page, fake_server):
    page = open_page(fake_server.url, width=360, height=640)
    page.set(seed=8)
    wide = ("word" * 200, "```\n" + "code " * 100 + "\n```", "| cell " * 30 + "|")
    page.ask(scripted("\n\n".join(wide)))
    page.one("#toggle").click()
    width = page.driver.execute_script("return document.documentElement.scrollWidth")
    assert width <= 360
    assert page.one("[name=key]").rect["x"] >= 0


def test_the_readmes_picture_is_of_a_real_conversation(open_page, demo_url, pytestconfig, tmp_path):
    page = open_page(demo_url, width=1120, height=720)
    page.set(temperature=0)
    assert page.ask("What is 47 + 85?") == "132"
    page.one("summary").click()
    page.choose(MEDIA / "digits.png")
    assert page.ask("Which digits are shown?") == "4 2 8"
    path = pytestconfig.getoption("--screenshot") or tmp_path / "playground.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    assert page.driver.save_screenshot(path)
