"""The console: a page that shows what a hub does, and lets one act on it.

Static files, an event stream that is a session of the hub like any other, and a way to
end one session.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.resources import files
from typing import Final, NamedTuple, final

from .._access import Access
from .._respond import Headers, Receive, Scope, Send, respond, respond_problem
from ..asgi import Endpoint, request_from_scope
from ..errors import HubClosed, Refused
from ..hub import Hub
from ..session import EndReason, Request, Session
from ._feed import Feed

_PAGE: Final = "/"
_PREFIX: Final = "/console/"
_STREAM: Final = _PREFIX + "stream"
_SESSIONS: Final = _PREFIX + "sessions/"

_FILES: Final = {
    "page.css": "text/css; charset=utf-8",
    "main.js": "text/javascript; charset=utf-8",
    "dom.js": "text/javascript; charset=utf-8",
    "events.js": "text/javascript; charset=utf-8",
    "plot.js": "text/javascript; charset=utf-8",
    "publish.js": "text/javascript; charset=utf-8",
    "sessions.js": "text/javascript; charset=utf-8",
    "stream.js": "text/javascript; charset=utf-8",
    "token.js": "text/javascript; charset=utf-8",
}

_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # The page writes text only; with this a browser refuses anything else.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS: Final[Headers] = [
    (b"cache-control", b"no-cache"),  # page and scripts belong to one version
    (b"content-security-policy", _POLICY.encode()),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]

_MIN_ID: Final = 8
"""Characters of a session's id that name it: what log lines and the page show."""


class _Static(NamedTuple):
    content_type: str
    body: bytes


@final
class Console:
    """The console of ``hub``.

    ``GET /`` is the page, ``GET /console/stream`` what it follows, ``DELETE
    /console/sessions/{id}`` ends a session. The page and its files hold no secrets and
    need no token; the stream needs what subscribing needs, ending a session what
    publishing needs. Pages of other origins may use none of it.

    Args:
        hub: what is shown.
        access: who may do what; its ``allowed_origins`` are for others' pages, and do
            not count here.
        events_path: where events are published, for the page's form.
        clients_path: for a hub that carries no events: where its clients are served. The
            page then shows sessions only.
        about: what to show of a session beside its client's address, in a few words.
    """

    def __init__(
        self,
        hub: Hub,
        access: Access,
        *,
        events_path: str = "/events",
        clients_path: str = "",
        about: Callable[[Session], str] = lambda _: "",
    ) -> None:
        self._hub = hub
        self._access = replace(access, allowed_origins=())
        self._stream = Endpoint(
            hub,
            Feed(hub, _STREAM, about).follow,
            topics=lambda _: (),
            access=self._access,
            resume=False,
        )
        self._static = _load(events_path, clients_path, access)

    def __repr__(self) -> str:
        return f"<Console of {self._hub!r}>"

    def owns(self, path: str) -> bool:
        """Whether `answer` is for ``path``."""
        return path == _PAGE or path.startswith(_PREFIX)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request for a path that this `owns`."""
        if scope["path"] == _STREAM:
            await self._stream.answer(scope, receive, send)
            return
        try:
            await self._answer(scope, send)
        except Refused as refusal:
            await respond_problem(send, refusal, head=scope["method"] == "HEAD")
        except HubClosed as exc:
            await respond_problem(send, Refused(503, str(exc), retry_after=5))

    async def _answer(self, scope: Scope, send: Send) -> None:
        request = request_from_scope(scope)
        self._access.check_host(scope, request.headers.get("host", ""))
        path = scope["path"]
        static = self._static.get(path)
        if static is not None:
            _check_method(request, "GET", "HEAD")
            await respond(
                send,
                200,
                static.body,
                content_type=static.content_type,
                headers=_HEADERS,
                head=request.method == "HEAD",
            )
        elif path.startswith(_SESSIONS):
            _check_method(request, "DELETE")
            # Whoever may publish may do this: `Access` is asked about publishing.
            await self._access.check(scope, replace(request, method="POST"))
            self._end(path[len(_SESSIONS) :])
            await respond(send, 204)
        else:
            raise Refused(404, "the console has nothing here; it is at /")

    def _end(self, session_id: str) -> None:
        self._hub.check_open()
        self._find(session_id).end(EndReason.application("ended at the console"))

    def _find(self, session_id: str) -> Session:
        """The session with this id, or the one whose id begins so.

        Raises:
            Refused: 404, or 409 if there are several.
        """
        sessions = self._hub.sessions
        found = [sessions[session_id]] if session_id in sessions else []
        if not found and len(session_id) >= _MIN_ID:
            found = [session for id, session in sessions.items() if id.startswith(session_id)]
        if not found:
            raise Refused(404, "no such session in this process; it may have ended already")
        if len(found) > 1:
            raise Refused(409, f"{len(found)} sessions have ids that begin so; give more of it")
        return found[0]


def _check_method(request: Request, *allowed: str) -> None:
    if request.method not in allowed:
        names = ", ".join(allowed)
        raise Refused(
            405,
            f"{request.method} is not for here; try {names}",
            headers=(("allow", names),),
        )


def _load(events_path: str, clients_path: str, access: Access) -> Mapping[str, _Static]:
    """The page and its files, by path."""
    folder = files(__name__)
    # Addresses in the page are relative to it: a proxy may put all of this below a prefix.
    needs = [
        what
        for what, token in (
            ("subscribe", access.subscribe_token),
            ("publish", access.publish_token),
        )
        if token is not None
    ]
    page = folder.joinpath("page.html").read_text(encoding="utf-8")
    page = page.replace("{{events}}", html.escape(events_path.lstrip("/")))
    page = page.replace("{{clients}}", html.escape(clients_path.lstrip("/")))
    page = page.replace("{{needs}}", " ".join(needs))
    static = {
        _PREFIX + name: _Static(content_type, folder.joinpath(name).read_bytes())
        for name, content_type in _FILES.items()
    }
    static[_PAGE] = _Static("text/html; charset=utf-8", page.encode())
    return static
