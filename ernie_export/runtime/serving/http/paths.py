"""Before the routes: the prefix that a proxy has before all paths, and HEAD for every GET."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Paths:
    """Middleware that puts the prefix before paths without it, and answers HEAD as GET without its body.

    A proxy may remove the prefix or leave it: routes are found either way.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        """Wrap an application. `root_path`: the prefix, such as "/ernie"; empty for none."""
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, as ASGI calls it."""
        if scope["type"] == "http":
            scope = dict(scope)
            if self._root_path and not f"{scope['path']}/".startswith(f"{self._root_path}/"):
                scope["path"] = self._root_path + scope["path"]
            if scope["method"] == "HEAD":
                scope["method"] = "GET"
                send = _without_body(send)
        await self._app(scope, receive, send)


def _without_body(send: Send) -> Send:
    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return send_head
