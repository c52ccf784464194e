"""The dashboard, in a real browser, against a whole sidecar."""

import asyncio
import itertools
import json
import re
from typing import Any

import asyncpg
import pytest
from playwright.async_api import Page, expect

from crossfade.admin.api import AdminServer
from crossfade.checks import checks_of
from crossfade.plan import Stage
from crossfade.telemetry import VERDICTS
from crossfade_api.v1 import admin_pb2
from tests.browser.looking import judge, keep
from tests.sidecar import Running, running
from tests.validated import validated

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
DARK = {"color_scheme": "dark"}


@pytest.fixture
async def stack(postgres_database):
    """In stage shadow, with some traffic of the past."""
    url = await postgres_database()
    shadow = {"daily_reads": 1_000_000}
    async with running(
        url, Stage.SHADOW, http={}, shadow=shadow, shadow_rate=1.0, read_percent=40
    ) as made:
        await made.copy()
        await busy(made)
        yield made


async def busy(stack: Running) -> None:
    for number in range(8):
        await stack.client.set(f"tasks/{number}", {"status": "pending", "priority": "high"})
        await stack.client.set(f"users/{number}", {"email": f"{number}@example.org"})
    await stack.settled()
    for _ in range(3):
        for number in range(8):
            await stack.client.get(f"tasks/{number}")
            await stack.client.get(f"users/{number}")
        await stack.settled()
        stack.sidecar.web.board._history.observe()
        await asyncio.sleep(0.05)


async def troubled(stack: Running) -> None:
    """A hand edit in PostgreSQL, a dead letter, and an audit trail."""
    await stack.percent(40, 1.0)
    await stack.sql.execute("update violet.tasks set priority = 'low' where id in ('1', '2')")
    while not stack.telemetry.counts(VERDICTS).get(("tasks", "wrong")):
        for number in (1, 2):
            await stack.client.get(f"tasks/{number}")  # which may be shed: a busy machine's are
        await asyncio.sleep(0.1)
    await stack.sidecar.shadow._samples.flush()
    await stack.settled()
    await stack.sql.execute(
        """insert into crossfade.pending (intent, path, collection_path, collection_id, epoch,
            lease_until, reason, attempts, failure, dead, inserted_at)
        values ('made', 'tasks/7f3a', 'tasks', 'tasks', 1, now(), 'commit', 10,
            'FAILED_PRECONDITION', true, now() - interval '9 minutes')"""
    )
    stack.sidecar.web.board._history.observe()


def place(stack: Running) -> str:
    return stack.sidecar.web.address


def act(page: Page, name: str):
    return page.locator(f"[data-act='{name}']")


# --- reading -----------------------------------------------------------------------------------


async def test_it_shows_where_the_migration_stands(stack, opened):
    async with opened(place(stack)) as page:
        await expect(page.locator(".now .step-name")).to_have_text("shadow")
        await expect(page.locator(".verdict")).to_have_text("Not yet: live has to wait")
        await expect(page.locator(".pill")).to_have_text("up to date")
        asked = len(checks_of(Stage.SHADOW, Stage.LIVE))
        await expect(page.locator(".checks .check")).to_have_count(asked)
        row = page.locator("#traffic tr", has_text="tasks")
        await expect(row).to_contain_text("40 %")
        await expect(page.locator("#latency .line.firestore")).to_have_attribute(
            "d", re.compile("^M")
        )
        table = page.get_by_role("table", name="Reads of the last minute")
        await expect(table).to_contain_text("PostgreSQL is")
        await expect(page.locator("#mismatches")).to_contain_text(
            "No shadow read found a difference"
        )
        await expect(page.locator("#latency")).to_contain_text("The same reads by both")
        kept = page.locator("#backlog .keeping")
        await expect(kept).to_contain_text(
            re.compile(r"p50 [\d.]+\sm?s, p99 [\d.]+\sm?s, of \d+ put")
        )
        await expect(kept).to_contain_text("left today")
        assert "shadow" in await page.title()


async def test_what_is_wrong_is_seen_at_once_and_in_detail(stack, opened):
    await troubled(stack)
    async with opened(place(stack)) as page:
        await expect(page.locator(".verdict")).to_have_text("Do not go on to live")
        await expect(page.locator(".hero")).to_have_class(re.compile("bad"))
        fold = page.locator("#mismatches .fold").first
        await fold.locator("summary").click()
        await expect(fold).to_contain_text("priority")
        await expect(fold.locator("table")).to_contain_text(re.compile("string of 4 #[0-9a-f]+"))
        assert "high" not in await fold.inner_text(), "values are not shown"
        await fold.get_by_role("button", name="Compare tasks").click()
        await expect(page.get_by_role("dialog")).to_contain_text("Firestore decides")
        await page.keyboard.press("Escape")
        await expect(page.locator("#letters")).to_contain_text("tasks/7f3a")
        # It is drawn again every two seconds; what is open stays open.
        await page.wait_for_timeout(2_500)
        await expect(fold.locator("table")).to_be_visible()
        await keep(page, "desktop-light")


# --- changing ----------------------------------------------------------------------------------


async def test_a_step_of_reads_is_looked_at_confirmed_and_told(stack, opened):
    async with opened(place(stack)) as page:
        await act(page, "traffic-tasks").click()
        dialog = page.get_by_role("dialog", name="Reads of tasks")
        await dialog.get_by_role("button", name="50 %", exact=True).click()
        await expect(dialog).to_contain_text("Dry run: 40 % → 50 % of the reads")
        assert "tasks" not in stack.sidecar.control.snapshot.traffic, "nothing is set so far"
        await dialog.get_by_label("Reason").fill("the next step")
        await dialog.get_by_label("Your name").fill("ada")
        await keep(page, "dialog-reads", full=False)
        await act(page, "confirm").click()
        await expect(dialog).to_have_count(0)
        await expect(page.locator("#live")).to_contain_text("50 % of the reads of tasks")
        await expect(page.locator("#traffic tr", has_text="tasks")).to_contain_text("50 %")
        await expect(page.locator("#audit")).to_contain_text("ada")
        await expect(page.locator("#audit")).to_contain_text("the next step")
        assert stack.sidecar.control.snapshot.plan_of("tasks").threshold == 5000

        await act(page, "traffic-users").click()
        await page.get_by_role("dialog").get_by_label("As a ramp").check()
        await act(page, "confirm").click()
        await expect(page.locator("#traffic tr", has_text="users")).to_contain_text("running")
        await act(page, "traffic-users").click()
        await act(page, "stop-ramp").click()
        await expect(page.locator("#traffic tr", has_text="users")).to_contain_text("stopped")


async def test_a_ramp_is_seen_to_advance(stack, opened, monkeypatch):
    monkeypatch.setattr("crossfade.jobs.ramp.PERIOD_SECONDS", 0.1)
    monkeypatch.setattr("crossfade.rpc.ramps.SETTLE_SECONDS", 0.3)
    monkeypatch.setattr("crossfade.shadow.ALONE_PER_SECOND", 1_000.0)
    limits: Any = {"max_mismatch": 0.05, "max_error_delta": 0.2, "max_p99_ratio": 1000}
    reading = True

    async def reader() -> None:
        while reading:
            for number in range(8):
                await stack.client.get(f"tasks/{number}")

    async with opened(place(stack)) as page:
        readers = asyncio.gather(reader(), reader())
        await stack.admin.StartRamp(
            admin_pb2.StartRampRequest(
                collection="tasks", steps=[60, 100], bake_seconds=3, min_samples=60, **limits
            )
        )
        row = page.locator("#traffic tr", has_text="tasks")
        await expect(row).to_contain_text("running")
        await expect(row).to_contain_text("60 %", timeout=30_000)
        await expect(row).to_contain_text("100 %", timeout=30_000)
        await expect(row).to_contain_text("done", timeout=30_000)
        await expect(page.locator("#audit")).to_contain_text("60 %")
        reading = False
        await readers


async def test_a_refused_change_says_why_and_changes_nothing(stack, opened):
    async with opened(place(stack)) as page:
        await act(page, "next").click()
        dialog = page.get_by_role("dialog", name="Move to another stage")
        await expect(dialog).to_contain_text("would refuse it")
        await expect(act(page, "confirm")).to_be_disabled()
        await dialog.get_by_label("Go on against the checks").check()
        await expect(act(page, "confirm")).to_have_text("Force live")
        await keep(page, "dialog-stage", full=False)
        await act(page, "cancel").click()
        assert stack.sidecar.control.snapshot.stage is Stage.SHADOW

        await act(page, "traffic-other").click()
        await page.get_by_role("dialog").get_by_label("Collection").fill("taks")
        problem = page.get_by_role("dialog").locator(".problem")
        await expect(problem).to_have_count(0)
        await expect(act(page, "confirm")).to_be_enabled()
        await act(page, "confirm").click()
        await expect(problem).to_contain_text('did you mean "tasks"?')
        assert "taks" not in stack.sidecar.control.snapshot.traffic


async def test_forward_by_force_and_back_by_rollback(stack, opened):
    async with opened(place(stack)) as page:
        await act(page, "next").click()
        await page.get_by_label("Go on against the checks").check()
        await act(page, "confirm").click()
        await expect(page.locator(".now .step-name")).to_have_text("live")
        await expect(page.locator(".decides")).to_contain_text("PostgreSQL")
        await stack.client.set("tasks/1", {"status": "completed"})

        await act(page, "rollback").click()
        dialog = page.get_by_role("dialog", name="Roll back")
        await expect(dialog).to_contain_text("loses now: 0")
        await act(page, "confirm").click()
        await expect(page.locator(".now .step-name")).to_have_text("shadow")
        await expect(page.locator("#live")).to_contain_text("Rolled back")
        await expect(page.locator("#traffic tr", has_text="tasks")).to_contain_text("0 %")
        assert stack.sidecar.control.snapshot.stage is Stage.SHADOW
        kept = stack.memory.read("tasks/1")
        assert kept.fields["status"] == "completed", "nothing was lost"


async def test_a_job_is_watched_and_paused(stack, opened):
    await stack.sql.execute(
        "update crossfade.jobs set state = 'running', ended_at = null, estimate = 1000"
    )
    async with (
        opened(place(stack)) as page,
        asyncpg.create_pool(stack.url, min_size=1, max_size=1) as worker,
    ):
        card = page.locator("#jobs")
        await expect(card).to_contain_text("of about 1,000 documents")
        copying = True

        async def copies() -> None:
            for done in itertools.takewhile(lambda _: copying, range(10, 900)):
                await worker.execute(
                    "update crossfade.job_partitions set counts = $1",
                    json.dumps({"tasks": {"copied": done}}),
                )
                await asyncio.sleep(0.1)

        steps = asyncio.create_task(copies())
        await expect(card).to_contain_text("done in about", timeout=20_000)
        await expect(card).not_to_contain_text("read again")
        spent = {"retries.ABORTED": 2, "retries.UNAVAILABLE": 1, "waited.store": 7.5}
        await stack.sql.execute(
            "update crossfade.jobs set outcome = outcome || $1", json.dumps({"effort": spent})
        )
        await expect(card).to_contain_text("3 pages read again")
        await expect(card).to_contain_text("waited 7.5\u00a0s (store)")
        copying = False
        await steps
        await expect(card.get_by_role("progressbar")).to_have_attribute("aria-valuemax", "100")
        await card.get_by_role("button", name="Pause backfill").click()
        await act(page, "confirm").click()
        await expect(card).to_contain_text("paused")
        await card.get_by_role("button", name="Resume backfill").click()
        await act(page, "confirm").click()
        await expect(card).to_contain_text("running")
        assert await stack.sql.fetchval("select state from crossfade.jobs") == "running"


async def test_validations_are_told_and_which_one_is_the_certificate(stack, opened):
    await validated(stack)
    await stack.sql.execute("delete from violet.tasks where id = '7'")
    await stack.sql.execute("delete from crossfade.versions where path = 'tasks/7'")
    await validated(stack)
    async with opened(place(stack)) as page:
        folds = page.locator("#validations .fold")
        await expect(folds).to_have_count(2)
        last, first = folds.first, folds.last
        await last.locator("summary").focus()
        await page.keyboard.press("Enter")
        await expect(last).to_contain_text("It is no certificate: it found differences.")
        await expect(last).to_contain_text("1 document differs")
        await expect(last.locator("td.bad-text")).to_have_text("1")
        await first.locator("summary").click()
        await expect(first).to_contain_text("16 documents")
        await expect(first).to_contain_text("It is no certificate: it is followed by validation")


# --- tokens, and a cut ---------------------------------------------------------------------------


async def test_a_token_is_asked_for_and_again_when_it_has_expired(
    postgres_database, tmp_path, opened
):
    file = tmp_path / "tokens.toml"
    entry = '[[token]]\nname = "ops"\nrole = "{}"\ntoken = "{}"\n'
    first, second = "first-token-of-the-tests", "second-token-of-the-tests"
    file.write_text(entry.format("admin", first))
    access = {"tokens_file": file}
    async with (
        running(await postgres_database(), Stage.SHADOW, http={}, access=access) as stack,
        opened(place(stack)) as page,
    ):
        dialog = page.get_by_role("dialog", name="Sign in")
        await expect(dialog).to_contain_text("asks for a token")
        await page.keyboard.press("Escape")
        await dialog.get_by_label("Token").fill("something-else-entirely")
        await act(page, "confirm").click()
        await expect(dialog.get_by_role("alert")).to_contain_text("not known, or has expired")
        await dialog.get_by_label("Token").fill(first)
        await page.keyboard.press("Enter")
        await expect(page.locator(".now .step-name")).to_have_text("shadow")
        assert await page.evaluate("Object.keys(localStorage).length + document.cookie.length") == 0

        file.write_text(entry.format("admin", second))
        await expect(dialog).to_contain_text("expired, or was taken back. Sign in again.")
        await expect(page.locator(".hero")).to_have_count(0)
        await keep(page, "sign-in", full=False)
        await dialog.get_by_label("Token").fill(second)
        await act(page, "confirm").click()
        await expect(page.locator(".now .step-name")).to_have_text("shadow")

        file.write_text(entry.format("reader", second))
        await expect(dialog).to_contain_text("this needs the role admin; yours is reader")


async def test_a_cut_stream_is_said_and_goes_on_by_itself(stack, opened):
    web = stack.sidecar.web
    async with opened(place(stack)) as page:
        await expect(page.locator(".pill")).to_have_text("up to date")
        host, _, port = web.address.rpartition(":")
        await web.stop()
        await expect(page.locator(".pill")).to_have_text("last known")
        await expect(page.locator(".cut")).to_contain_text("Last known state")
        await expect(page.locator("#live")).to_contain_text("The connection is cut")
        await expect(page.locator(".verdict")).to_have_text("Not known now")
        await expect(page.locator(".now .step-name")).to_have_text("shadow")
        assert await judge(page) == []
        await keep(page, "cut", full=False)
        again = AdminServer(web._parts, host, int(port))
        await again.start()
        try:
            await expect(page.locator(".pill")).to_have_text("up to date")
            await expect(page.locator(".cut")).to_have_count(0)
            await expect(page.locator("#live")).to_contain_text("answers again")
        finally:
            await again.stop()


# --- for everybody ---------------------------------------------------------------------------


LOOKS: dict[str, dict[str, Any]] = {
    "desktop-dark": DARK,
    "phone-light": PHONE,
    "phone-dark": PHONE | DARK,
}


async def test_every_look_of_it(stack, opened):
    await validated(stack)
    await troubled(stack)
    for name, options in LOOKS.items():
        async with opened(place(stack), **options) as page:
            await expect(page.locator("#mismatches .fold").first).to_be_visible()
            await expect(page.locator("#letters")).to_contain_text("tasks/7f3a")
            await page.locator("#validations .fold summary").first.click()
            await expect(page.locator("#validations")).to_contain_text("goes by this one")
            assert await judge(page) == [], name
            await keep(page, name)
            await act(page, "traffic-tasks").click()
            await expect(page.get_by_role("dialog")).to_contain_text("Dry run")
            assert await judge(page) == [], name
            await keep(page, f"{name}-dialog", full=False)
            confirm = act(page, "confirm")
            await expect(confirm).to_be_in_viewport()
            await confirm.click()
            await expect(page.get_by_role("dialog")).to_have_count(0)


async def test_each_group_of_collections_has_its_own_track(postgres_database, opened):
    groups = {"accounts": {"collections": ("users", "api_keys", "user_emails")}}
    url = await postgres_database()
    async with (
        running(url, Stage.SHADOW, http={}, groups=groups) as stack,
        opened(place(stack)) as page,
    ):
        cards = page.locator(".hero")
        await expect(cards).to_have_count(2)
        await expect(cards.nth(0).locator(".now .step-name")).to_have_text("shadow")
        await expect(cards.nth(1).locator(".now .step-name")).to_have_text("off")
        await expect(cards.nth(1)).to_contain_text("Group accounts: api_keys, user_emails, users")
        assert await judge(page) == []
        await keep(page, "groups")
        await cards.nth(1).locator("[data-act=next]").click()
        await act(page, "confirm").click()
        await expect(cards.nth(1).locator(".now .step-name")).to_have_text("dual write")
        await expect(cards.nth(0).locator(".now .step-name")).to_have_text("shadow")


async def test_it_is_worked_by_keyboard_alone(stack, opened):
    await troubled(stack)
    async with opened(place(stack)) as page:
        await expect(page.locator(".hero")).to_be_visible()
        assert await judge(page) == []
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.activeElement.className") == "skip"
        for _ in range(12):
            await page.keyboard.press("Tab")
            if await page.evaluate("document.activeElement.dataset.act") == "rollback":
                break
        assert await page.evaluate("document.activeElement.dataset.act") == "rollback"
        await page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog", name="Roll back")
        await expect(dialog).to_be_visible()
        assert await judge(page) == []
        for _ in range(8):
            await page.keyboard.press("Tab")
            # In between it is the browser's own turn, and nothing of the page has it.
            held = "document.activeElement.closest('dialog, body')?.localName"
            assert await page.evaluate(held) in {"dialog", "body"}
            assert await page.evaluate("document.activeElement.closest('main')") is None
        await page.keyboard.press("Escape")
        await expect(dialog).to_have_count(0)
        assert await page.evaluate("document.activeElement.dataset.act") == "rollback"

        plot = page.locator("#latency svg.plot")
        await plot.focus()
        await page.keyboard.press("ArrowLeft")
        await expect(plot.locator(".cursor")).to_have_count(1)
        # What is drawn anew every two seconds keeps the focus where it is.
        await page.wait_for_timeout(2_500)
        assert await page.evaluate("document.activeElement.getAttribute('class')") == "plot"
