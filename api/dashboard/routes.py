"""The wiring of the dashboard. Nothing connects before the first page is asked for."""

from typing import Any

from litestar import Router
from litestar.response import Response

from api.batches.intake import BatchIntake
from api.dashboard.batches import batch_page_routes
from api.dashboard.developers import developer_routes
from api.dashboard.forms import FormTokens
from api.dashboard.home import home_routes
from api.dashboard.pages import HOME, Pages
from api.dashboard.password_threads import PasswordThreads
from api.dashboard.rendering import Renderer
from api.dashboard.sessions import Sessions
from api.dashboard.settings import settings_routes
from api.dashboard.sign_in import sign_in_routes
from api.dashboard.sign_in_tries import SignInTries
from api.dashboard.transactions import transaction_page_routes
from api.dashboard.uploads import Uploads
from api.dashboard.users import user_routes
from api.resources.pagination import Paginator
from api.web.assets import Assets
from api.web.business_request import DatabaseThreads
from api.web.recent_requests import RecentRequests
from api.web.request import HttpRequest
from core.database.connection import Database
from core.settings.loader import Settings
from workers.servers import open_async_redis

_POOL_SIZE = 6  # for the threads of `DatabaseThreads` and of `PasswordThreads`
_UPLOAD_TIMEOUT_S = 10.0


class Dashboard:
    """The pages, with connections and threads of their own: nobody who pays waits for a page."""

    def __init__(
        self, settings: Settings, paginator: Paginator, intake: BatchIntake, recent_requests: RecentRequests
    ) -> None:
        secret = settings.hash_secret_bytes
        self._database = Database.from_settings(settings, pool_size=_POOL_SIZE)
        self._threads = DatabaseThreads(self._database, timeout_s=settings.resolve_timeout_s)
        self._passwords = PasswordThreads(self._database)
        self._redis = open_async_redis(settings, retries=1)
        self._upload_redis = open_async_redis(settings, retries=1, timeout_s=_UPLOAD_TIMEOUT_S)

        # A function: Litestar makes deep copies, of what a method is bound to as well.
        def answer_error(request: HttpRequest, error: Exception) -> Response[Any]:
            return self.answer_error(request, error)

        assets = Assets()
        self._pages = Pages(self._threads, Sessions(self._redis, secret), FormTokens(secret), Renderer(assets))
        tries = SignInTries(self._redis, secret)
        uploads = Uploads(self._upload_redis, secret)
        self.router = Router(
            HOME,
            route_handlers=[
                assets.route(),
                *sign_in_routes(self._pages, tries, self._passwords),
                *home_routes(self._pages),
                *user_routes(self._pages),
                *transaction_page_routes(self._pages, paginator),
                *batch_page_routes(self._pages, paginator, intake, uploads, secret),
                *developer_routes(self._pages, recent_requests),
                *settings_routes(self._pages),
            ],
            exception_handlers={Exception: answer_error},
        )

    def answers(self, request: HttpRequest) -> bool:
        """Tell whether somebody who asks for this path should get a page, where there is none."""
        path = request.scope["path"]
        return path == HOME or path.startswith(f"{HOME}/")

    def answer_error(self, request: HttpRequest, error: Exception) -> Response[Any]:
        """Answer with a page that says what went wrong."""
        return self._pages.answer_error(request, error)

    async def close(self) -> None:
        """Let go of threads and connections."""
        self._threads.close()
        self._passwords.close()
        await self._redis.aclose()
        await self._upload_redis.aclose()
        self._database.close()
