"""See that the browser tests find a Chromium, installing one where that is possible; say what will be skipped if not.

Run as a script before the tests; `find` is what the tests themselves use.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find() -> str | None:
    """Return the path of a Chromium: MLSCOPE_CHROMIUM, one on PATH, or Playwright's own."""
    named = os.environ.get("MLSCOPE_CHROMIUM")
    if named:
        return named
    for name in NAMES:
        path = shutil.which(name)
        if path:
            return path
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if os.path.exists(path) else None


def install() -> None:
    """Try the system's packages where we may, else Playwright's download; a failure is not an error here."""
    attempts = []
    if hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
        attempts += [["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "chromium"]]
    attempts.append([sys.executable, "-m", "playwright", "install", "chromium"])
    for command in attempts:
        if find():
            return
        try:
            subprocess.run(command, check=False, timeout=600, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"{command[0]}: {error}")


if __name__ == "__main__":
    if not find():
        print("Installing Chromium for the browser tests ...")
        install()
    print(f"Browser tests use {find()}" if find() else "No Chromium here and none to be had: browser tests are skipped")
