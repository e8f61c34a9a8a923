"""Stylesheets, scripts and icons: read once, and named by what they hold, so that browsers keep them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from litestar import Response, get
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler

from api.web.browser_headers import browser_headers
from api.web.request import HttpRequest

_FOLDER = Path(__file__).resolve().parent / "static"
_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FOR_EVER = "public, max-age=31536000, immutable"
_DIGITS = 16


@dataclass(frozen=True, slots=True)
class _Asset:
    content: bytes
    media_type: str


class Assets:
    """Every file of a folder, under a name that changes with it; `at` is where the routes of its pages begin."""

    def __init__(self, folder: Path = _FOLDER, at: str = "/dashboard") -> None:
        self._at = at
        self._by_name: dict[str, _Asset] = {}
        self._names: dict[str, str] = {}
        for path in sorted(folder.iterdir()):
            if path.suffix in _MEDIA_TYPES:
                content = path.read_bytes()
                name = f"{path.stem}.{hashlib.sha256(content).hexdigest()[:_DIGITS]}{path.suffix}"
                self._names[path.name] = name
                self._by_name[name] = _Asset(content, _MEDIA_TYPES[path.suffix])

    def url(self, file_name: str) -> str:
        """Return the address of a file in the folder."""
        return f"{self._at}/assets/{self._names[file_name]}"

    def route(self) -> HTTPRouteHandler:
        """Wire the endpoint."""

        @get("/assets/{name:str}")
        async def get_asset(request: HttpRequest, name: str) -> Response[bytes]:
            asset = self._by_name.get(name)
            if asset is None:
                raise NotFoundException
            headers = browser_headers(request, cache=_FOR_EVER)
            return Response(asset.content, media_type=asset.media_type, headers=headers)

        return get_asset
