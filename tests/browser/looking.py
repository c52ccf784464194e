"""Looking at a page: screenshots for people, and what machines can judge of accessibility."""

from pathlib import Path
from typing import Any

from playwright.async_api import Page

JUDGE = Path(__file__).with_name("judge.js")
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"


async def keep(page: Page, name: str, *, full: bool = True) -> None:
    """A screenshot in build/screenshots."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=full)


async def judge(page: Page) -> list[str]:
    """What is wrong, a line each: text of too little contrast (WCAG AA), controls and pictures
    without a name, ids that are there twice, a page wider than its window."""
    found: Any = await page.evaluate(JUDGE.read_text())
    return [str(line) for line in found]
