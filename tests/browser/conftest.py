"""One browser and the servers that it is pointed at: the demo model's, as a newcomer starts it, and
two over the fake engine, which says what a test wants."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "e2e")]

from fake_server import FakeServer  # noqa: E402
from playground_page import Page  # noqa: E402

from mimo_engine.config.security import SecurityConfig  # noqa: E402

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1280, 800


def pytest_addoption(parser):
    parser.addoption("--screenshot", type=Path, help="where the README's picture is written")


@pytest.fixture(scope="session")
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, BROWSERS)))
    # In containers tests run as root, for whom the sandbox does not start, and /dev/shm is small.
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="session")
def demo_url():
    """Of `mimo-engine serve demo`, on a port that the system chooses, and always with drafts: on a
    busy machine they may not pay off."""
    command = Path(sys.executable).with_name("mimo-engine")
    flags = ("--port", "0", "--speculative", "mtp")
    # Two processes: one of the server and one of the engine, and the browser beside them.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [command, "serve", "demo", *flags], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            log = []
            for line in process.stderr:
                log.append(line)
                if found := re.search(r"serving on (http://[^/]+)", line):
                    break
            assert found, "".join(log)
            yield found[1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


@pytest.fixture(scope="session")
def fake_server(tmp_path_factory):
    with FakeServer(tmp_path_factory.mktemp("fake"), step_s=0.02) as server:
        yield server


@pytest.fixture(scope="session")
def keyed_server(tmp_path_factory):
    security = SecurityConfig(api_key=("sk-secret",))
    with FakeServer(tmp_path_factory.mktemp("keyed"), security=security) as server:
        yield server


@pytest.fixture
def open_page(driver):
    """Opens a playground as a newcomer sees it; in the end nothing must have been refused by the
    page's policy or failed in its script."""

    def open_page(url, *, width=WIDTH, height=HEIGHT):
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        driver.get(url)
        driver.execute_script("sessionStorage.clear()")
        driver.refresh()
        driver.get_log("browser")
        return Page(driver, url)

    yield open_page
    # What the server answers with an error the browser logs too.
    complaints = [
        entry for entry in driver.get_log("browser") if "Failed to load resource" not in str(entry)
    ]
    assert not complaints


@pytest.fixture
def demo(open_page, demo_url):
    return open_page(demo_url)


@pytest.fixture
def fake(open_page, fake_server):
    return open_page(fake_server.url)
