"""A real JupyterLab and a real Chromium, on a copy of the notebooks; without Chromium a skip that says so."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from jupyter_page import Page, Server, Watch

ROOT = Path(__file__).parents[2]
PACKAGES = {"playwright": "playwright", "axe_playwright_python": "axe-playwright-python"}  # module: package


def chromium() -> str | None:
    """The path of the one that CHROMIUM names, or else of the first on the PATH."""
    names = (
        [os.environ["CHROMIUM"]] if os.environ.get("CHROMIUM") else ["chromium", "chromium-browser", "google-chrome"]
    )
    return next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="session", autouse=True)
def needed() -> None:
    """Skip without what the tests need; `make test-browser`, which installs it, asks for a failure instead."""
    lacks = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    lacks += [] if chromium() else [f"{os.environ.get('CHROMIUM') or 'Chromium'} (no such program)"]
    if lacks:
        refuse = pytest.fail if "LAB_BROWSER" in os.environ else pytest.skip
        refuse(f"missing: {', '.join(lacks)}. `make test-browser` installs what it needs and runs these tests.")


@pytest.fixture(scope="session")
def server(needed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """JupyterLab on a free port of this machine, with a token, and with nothing of the user's own settings."""
    home = tmp_path_factory.mktemp("jupyter")
    root = home / "root"
    for name in ("notebooks", "figures"):  # the notebooks show figures
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns(".*"))
    token = secrets.token_hex(16)
    folders = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
    environment = os.environ | {f"JUPYTER_{name}": str(home / folder) for name, folder in folders.items()}
    environment |= {
        "JUPYTER_TOKEN": token,
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "LAB_PREDICTIONS": str(home / "predictions.jsonl"),
        "LAB_EXERCISES": "solved",
        "OMP_NUM_THREADS": "1",
    }
    config = {
        "ServerApp": {"ip": "127.0.0.1", "port": 0, "root_dir": str(root), "allow_root": True, "open_browser": False},
        # There is no network for a list of extensions. The app is asked by `Page.idle`.
        "LabApp": {"extension_manager": "readonly", "expose_app_in_browser": True},
    }
    # Asked about news, a person without a network says no.
    news = home / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    (home / "config").mkdir()
    (home / "config" / "jupyter_lab_config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "jupyterlab"]
    with open(home / "server.log", "w") as log:
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log)
        try:
            url = address(process, home / "runtime" / f"jpserver-{process.pid}.json", home / "server.log")
            yield Server(url, token, root, home / "predictions.jsonl")
        finally:
            process.terminate()  # it ends its kernels
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def address(process: subprocess.Popen, about: Path, log: Path, seconds: float = 60) -> str:
    """Where the server answers, once it does; the file `about` says where that will be."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            url = json.loads(about.read_text())["url"]
            with urlopen(f"{url}login", timeout=5):
                return url
        except (FileNotFoundError, json.JSONDecodeError, URLError, ConnectionError):
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not answer within {seconds:.0f} s. Its log:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="session")
def browser(needed: None) -> Iterator:
    """Debian's Chromium, or the one that CHROMIUM names; Playwright's own is never fetched."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's sandbox does not run for root.
        chrome = playwright.chromium.launch(executable_path=chromium(), chromium_sandbox=os.geteuid() != 0)
        yield chrome
        chrome.close()


@pytest.fixture
def page(browser, server: Server, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A window of its own. At the end its picture goes to build/browser/, and what went wrong in it fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, reduced_motion="reduce")
    context.set_default_timeout(20_000)
    watch = Watch(context, server.url)
    page = Page(context.new_page(), server, ROOT / "build" / "browser", request.node.name)
    yield page
    page.picture("end")
    context.close()
    assert watch.problems == []
