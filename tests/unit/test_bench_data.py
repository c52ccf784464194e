"""The bench's large tables: what grows is history, and what is asked for stays as it is."""

from loadtests import postgres
from loadtests.bench import in_process, many


def test_only_the_seed_has_open_tasks():
    tasks = [many.task(number) for number in range(3 * many.SEED)]
    seed, copies = tasks[: many.SEED], tasks[many.SEED :]
    assert sum(task["status"] in many.OPEN for task in seed) == many.SEED // 10
    assert {task["status"] for task in copies} == {"completed", "approved", "failed"}
    assert len({task["task_id"] for task in tasks}) == len(tasks)


def test_a_copy_is_like_the_task_it_is_made_from():
    for number in range(many.SEED):
        one, other = many.task(number), many.task(number + 7 * many.SEED)
        assert one.keys() == other.keys()
        same = one.keys() - {"task_id", "status"}
        assert {name: one[name] for name in same} == {name: other[name] for name in same}
        if one["status"] not in {*many.OPEN, "almost done"}:
            assert one["status"] == other["status"]


def test_keys_come_once():
    pages = in_process.keys()
    first, second = next(pages), next(pages)
    assert len({*first, *second}) == 2 * in_process.PAGE
    assert first != sorted(first)


def test_every_group_has_a_title():
    assert {*postgres.GROUPS} == {"get", "put", *postgres.TITLES}
