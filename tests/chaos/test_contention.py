"""Many want the last of a balance at the same moment: it is given away in some order, to the cent."""

import asyncio
import random
from bisect import bisect_right
from itertools import accumulate, pairwise

from tests.chaos.cluster import Cluster, run_cluster
from tests.chaos.history import assert_history_is_what_clients_were_told, read_history
from tests.chaos.load import CLIENTS, INSUFFICIENT, Answer, Connection, call
from tests.servers import Account

FUNDS_CENTS = 300_000
CALLS_OF_A_CLIENT = 40
AMOUNT_MAX = 1_000


async def spend(cluster: Cluster, account: Account) -> list[Answer]:
    """Let all clients call at once, one call after another, for far more than there is."""

    async def be_client(number: int) -> list[Answer]:
        connection, chance = Connection(), random.Random(number)  # noqa: S311 (no secret)
        web = f"web-{1 + number % 2}"
        answers = [
            await call(
                connection,
                account,
                web,
                cluster.ports[web],
                f"client.{number}.{n}@example.com",
                chance.randint(1, AMOUNT_MAX),
            )
            for n in range(CALLS_OF_A_CLIENT)
        ]
        connection.close()
        return answers

    by_client = await asyncio.gather(*(be_client(number) for number in range(CLIENTS)))
    return [answer for answers in by_client for answer in answers]


def assert_a_serial_order_explains(answers: list[Answer], balances_after: list[int]) -> None:
    """No call may see money that was gone before it began, or miss money that was there until it ended.

    The balance only falls. While a refused call was under way, it was at least what all calls that began later
    were given after it, and the call asked for more than the balance at some moment of that time.
    """
    accepted = [answer for answer in answers if answer.status == 201]
    refused = [answer for answer in answers if answer.status == 400]
    left = FUNDS_CENTS - sum(answer.amount for answer in accepted)
    assert left == balances_after[-1]
    accepted.sort(key=lambda answer: answer.started_at)
    starts = [answer.started_at for answer in accepted]
    given_before = [0, *accumulate(answer.amount for answer in accepted)]
    for answer in refused:
        given_later = given_before[-1] - given_before[bisect_right(starts, answer.ended_at)]
        assert answer.amount > left + given_later, f"{answer} was refused with {left + given_later} cents there"


def test_balance_that_runs_out_midway_is_given_away_as_in_a_serial_order() -> None:
    with run_cluster(webs=2) as cluster:
        account = cluster.open_account(funds_cents=FUNDS_CENTS)
        answers = asyncio.run(spend(cluster, account))
        assert {answer.status for answer in answers} == {201, 400}
        assert all(answer.body == {"error": INSUFFICIENT} for answer in answers if answer.status == 400)
        history = sorted(read_history(cluster.database), key=lambda entry: -entry.payout_balance_after)
        balances_after = [FUNDS_CENTS, *(entry.payout_balance_after for entry in history)]
        assert_a_serial_order_explains(answers, balances_after)
        # The order in which calls were answered agrees with the order of the history.
        by_key = {answer.key: answer for answer in answers}
        latest_start = 0.0
        for entry in history:
            assert by_key[entry.key].ended_at >= latest_start
            latest_start = max(latest_start, by_key[entry.key].started_at)
        assert all(before > after for before, after in pairwise(balances_after))
        assert_history_is_what_clients_were_told(cluster, answers)
