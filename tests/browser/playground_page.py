"""The playground as a person uses it: what can be typed, clicked and dropped, and what is seen."""

import base64
from urllib.request import urlopen

from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

LONGEST_S = 60

DROP = """
const [name, type, data, event, target] = arguments;
const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], name, { type }));
const options = { bubbles: true, cancelable: true };
if (event === "paste") target.dispatchEvent(new ClipboardEvent(event, { ...options, clipboardData: transfer }));
else target.dispatchEvent(new DragEvent(event, { ...options, dataTransfer: transfer }));
"""  # noqa: E501


class Page:
    def __init__(self, driver, url):
        self.driver = driver
        self.url = url

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def one(self, selector):
        return self.driver.find_element("css selector", selector)

    def wait(self, condition):
        """What `condition` gives, once it gives something true."""
        return WebDriverWait(self.driver, LONGEST_S, 0.02).until(lambda _: condition())

    def texts(self, selector):
        return [node.text for node in self.all(selector)]

    def set(self, **values):
        """Settings, by their names. Their form is opened and closed as a person would."""
        self.one("#toggle").click()
        for name, value in values.items():
            field = self.one(f"#fields [name={name}]")
            if field.tag_name != "select":
                field.clear()
            field.send_keys(str(value))
        self.one("#toggle").click()

    def type(self, text):
        """At once, as an input method does: keys one by one take seconds."""
        self.driver.execute_script("prompt.focus()")
        self.driver.execute_cdp_cmd("Input.insertText", {"text": text})

    def press(self, *keys):
        self.one("#prompt").send_keys(*keys)

    def send(self, text):
        self.type(text)
        self.press(Keys.ENTER)

    def ask(self, text):
        """What is answered, when all of it has come."""
        self.send(text)
        return self.answer()

    def answer(self):
        """The content of the last answer, once it has ended."""
        self.wait(self.is_idle)
        assert not self.texts(".error")
        return self.all(".answer")[-1].find_element("css selector", ".prose").text.strip()

    def is_idle(self):
        return self.one("#send").is_displayed() and bool(self.all(".answer .foot button, .error"))

    def hand_over(self, path, media_type, event, target):
        """Drop or paste a file, as a browser would report it."""
        before = len(self.all("#media figure"))
        data = base64.b64encode(path.read_bytes()).decode()
        self.driver.execute_script(DROP, path.name, media_type, data, event, self.one(target))
        self.wait(lambda: len(self.all("#media figure")) == before + 1)

    def choose(self, path):
        before = len(self.all("#media figure"))
        self.one("#files").send_keys(str(path))
        self.wait(lambda: len(self.all("#media figure")) == before + 1)

    def metric(self, name):
        """A metric of the server, 0 where there is none yet."""
        with urlopen(f"{self.url}/metrics") as response:
            lines = response.read().decode().splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")), 0.0)
