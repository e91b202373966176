"""A headless Chromium, what it complained about, and a Jupyter server to look at."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--hide-scrollbars",
)
START_SECONDS = 120


def find(*names: str) -> str | None:
    """The first of these programs that is installed."""
    return next((path for name in names if (path := shutil.which(name))), None)


def missing() -> str:
    """Which program the browser tests lack, if any."""
    if find("chromium", "chromium-browser", "google-chrome") is None:
        return "Chromium is not installed, so no page was opened in a browser"
    if find("chromedriver") is None:
        return "chromedriver is not installed, so no page was opened in a browser"
    return ""


@contextmanager
def chromium(downloads: Path) -> Iterator[webdriver.Chrome]:
    """Start a browser with a fresh profile that reports every request."""
    options = webdriver.ChromeOptions()
    options.binary_location = find("chromium", "chromium-browser", "google-chrome")
    profile = tempfile.mkdtemp()
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    logs = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logs)
    options.add_experimental_option(
        "prefs", {"download.default_directory": str(downloads)}
    )
    driver = webdriver.Chrome(options=options, service=Service(find("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)


def set_width(driver: webdriver.Chrome, width: int, height: int = 900) -> None:
    """Give the page this many CSS pixels, as a phone's browser would."""
    screen = {"width": width, "height": height, "deviceScaleFactor": 1}
    mobile = {"mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen | mobile)


def forget(driver: webdriver.Chrome) -> None:
    """Drop what the browser has reported so far."""
    driver.get_log("browser")
    driver.get_log("performance")


def complaints(driver: webdriver.Chrome, inside: str) -> list[str]:
    """Errors in the console, failed requests, and requests to anywhere else."""
    found = [
        f"console: {entry['message']}"
        for entry in driver.get_log("browser")
        if entry["level"] == "SEVERE"
    ]
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        about = message["params"]
        if message["method"] == "Network.requestWillBeSent":
            url = about["request"]["url"]
            if not url.startswith((inside, "data:", "blob:")):
                found.append(f"request to elsewhere: {url}")
        elif message["method"] == "Network.loadingFailed":
            if not about.get("canceled"):
                found.append(f"failed: {about}")
        elif message["method"] == "Network.responseReceived":
            status = about["response"]["status"]
            if status >= 400:
                found.append(f"{status}: {about['response']['url']}")
    return found


@contextmanager
def jupyter(folder: Path, own: Path, page: str, *options: str) -> Iterator[str]:
    """Start a Jupyter server as after an installation; gives a page's address.

    Args:
        folder: where it starts
        own: where it may keep what is its own
        page: the part of the address that must answer
        options: the module to run, and its options
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", *options, "--no-browser", "--allow-root"),
        *("--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"),
        *("--IdentityProvider.token=", "--PasswordIdentityProvider.hashed_password="),
    ]
    names = ("CONFIG_DIR", "RUNTIME_DIR", "DATA_DIR")
    environment = {
        **os.environ,
        **{f"JUPYTER_{name}": str(own / name.lower()) for name in names},
        "JUPYTERLAB_WORKSPACES_DIR": str(own / "workspaces"),
        "JUPYTERLAB_SETTINGS_DIR": str(own / "settings"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    log = own / "server.log"
    with open(log, "wb") as output:
        running = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, cwd=folder
        )
    try:
        address = f"http://127.0.0.1:{port}/{page}"
        _wait_for(address, running, log)
        yield address
    finally:
        running.terminate()
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def _wait_for(address: str, running: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and running.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.3)
    raise AssertionError(f"the server does not answer:\n{log.read_text()[-3000:]}")
