"""The admin API where groups of collections stand in different stages."""

from crossfade.plan import Stage
from tests.http_caller import call
from tests.sidecar import running

API = "/api/v1"
GROUPS = {"accounts": {"collections": ("users", "api_keys", "user_emails")}}


async def test_each_group_is_shown_moved_and_rolled_back_for_itself(postgres_database):
    async with running(
        await postgres_database(), Stage.SHADOW, http={}, groups=GROUPS, read_percent=30
    ) as stack:

        async def ask(path, body=None, **options):
            answer = await call(stack.sidecar.web.address, API + path, body, **options)
            assert answer.status == 200, answer.body
            return answer.json

        state = await stack.sidecar.web.board.state()
        assert state["unknown"] == {}
        shown = {each["group"]: each for each in state["stand"]["groups"]}
        assert list(shown) == ["default", "accounts"]
        assert shown["accounts"]["collections"] == ["api_keys", "user_emails", "users"]
        assert (shown["default"]["stage"], shown["default"]["next"]) == ("shadow", "live")
        assert {check["name"] for check in shown["default"]["checks"]} >= {"verdicts", "pending"}
        assert (shown["accounts"]["stage"], shown["accounts"]["next"]) == ("off", "dual_write")

        forced = {"stage": "shadow", "force": True, "group": "accounts"}
        moved = await ask("/stages/set", forced)
        assert (moved["status"]["group"], moved["status"]["stage"]) == ("accounts", "shadow")
        assert (await ask("/stages?group=accounts"))["next"] == "live"

        own = {"group": "accounts", "read_percent": 70}
        set_to = await ask("/traffic", own, method="PUT")
        assert (set_to["before"]["read_percent"], set_to["after"]["read_percent"]) == (30, 70)
        assert set_to["after"]["group"] == "accounts"

        back = await ask("/stages/rollback", {"group": "accounts"})
        assert (back["status"]["group"], back["status"]["stage"]) == ("accounts", "shadow")
        percents = {each["group"]: each["read_percent"] for each in back["status"]["traffic"]}
        assert percents == {"default": 30, "accounts": 0}, "the other group stays as it was"
        wrong = await call(stack.sidecar.web.address, f"{API}/status?group=nobody")
        assert (wrong.status, wrong.json["field"]) == (400, "group")
