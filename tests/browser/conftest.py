"""A real Chromium, and a sidecar whose dashboard it opens.

Chromium is Debian's package `chromium`, or what CROSSFADE_CHROMIUM names.
`CROSSFADE_REQUIRE_CHROMIUM=1` turns its absence from a skip into a failure.
"""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest_asyncio.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    path = os.environ.get("CROSSFADE_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), "")
    if not path:
        if os.environ.get("CROSSFADE_REQUIRE_CHROMIUM") == "1":
            pytest.fail("Chromium is required and not there: apt-get install chromium")
        pytest.skip("Chromium is not installed")
    async with async_playwright() as playwright:
        # Containers have no user namespaces for its sandbox; it opens our own page alone.
        started = await playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield started
        await started.close()


@pytest.fixture
def opened(browser: Browser) -> Any:
    """Opens a dashboard; at the end, that it complained of nothing is checked."""

    @asynccontextmanager
    async def open_page(address: str, **options: Any) -> AsyncIterator[Page]:
        given = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"} | options
        context = await browser.new_context(**given)
        page = await context.new_page()
        page.set_default_timeout(20_000)
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda message: (
                complaints.append(message.text)
                # The browser's own word for any answer of 400 and more.
                if message.type == "error" and not message.text.startswith("Failed to load")
                else None
            ),
        )
        try:
            await page.goto(f"http://{address}/")
            yield page
        finally:
            await context.close()
        assert complaints == []

    return open_page
