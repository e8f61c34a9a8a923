"""What people see while a part of the system is away: a page that says so, and no trace of how."""

from tests.dashboard.visitors import Document, Visitor, add_member, base
from tests.servers import Parts, Servers, open_account, run_system, run_valkey


def test_pages_say_that_redis_is_away(servers: Servers) -> None:
    with run_valkey() as valkey, run_system(servers, redis_url=valkey.url) as system:
        account = open_account(system.database)
        visitor = add_member(system, account.business)
        assert visitor.sign_in().status_code == 303
        form = visitor.open(f"{base(account.business)}/settings").form("/settings/payouts")
        stranger = Visitor(system, visitor.email)
        sign_in = stranger.open("/dashboard/sign-in").form("/sign-in")
        valkey.stop()
        answers = [
            visitor.get(base(account.business)),
            visitor.get(f"{base(account.business)}/transactions.csv"),
            visitor.send(form),
            stranger.send(sign_in, email=visitor.email, password="a password"),
        ]
        for response in answers:
            assert response.status_code == 503
            assert "Not available right now" in Document(response.text).text
            assert response.headers["retry-after"]
            assert "Traceback" not in response.text
            assert "redis" not in response.text.lower()
        assert stranger.get("/dashboard/sign-in").status_code == 200
        assert visitor.email not in system.logs()


def test_pages_say_that_postgresql_is_away(servers: Servers) -> None:
    with run_system(servers, Parts(without=("worker", "batches", "beat"))) as system:
        account = open_account(system.database)
        visitor = add_member(system, account.business)
        assert visitor.sign_in().status_code == 303
        name = str(system.database.engine.url.database)
        system.database.close()
        servers.rename(name, f"{name}_away")
        try:
            response = visitor.get(base(account.business))
        finally:
            servers.rename(f"{name}_away", name)
        assert response.status_code == 503
        assert "Not available right now" in Document(response.text).text
        assert name not in response.text
        assert visitor.get(base(account.business)).status_code == 200
