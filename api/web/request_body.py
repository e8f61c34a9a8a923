"""Reading a request's body as a whole."""

import asyncio

from litestar.exceptions import HTTPException, InternalServerException

from api.web.request import HttpRequest


async def read_body(request: HttpRequest, timeout_s: float | None = None) -> bytes:
    """Return the body.

    Raises:
        HTTPException: 400 where the caller has gone, 408 where the body is not there in time, 413 for one that is
            too long.

    """
    try:
        return await asyncio.wait_for(request.body(), timeout_s)
    except TimeoutError:
        raise HTTPException(status_code=408) from None
    except InternalServerException:  # what Litestar makes of a caller that has gone; nobody reads the answer
        raise HTTPException(status_code=400) from None
