"""An event stream of its own: one URL to subscribe to, and to publish at.

Run it::

    hypercorn -k trio standalone_app:app

and, in two more terminals::

    curl -N "http://127.0.0.1:8000/?topic=news"
    curl -d topic=news -d data=hello http://127.0.0.1:8000/
"""

from __future__ import annotations

import trio_sse

hub = trio_sse.Hub()
app = trio_sse.Endpoint(hub, publish=True)


@hub.hooks.on_unregister
def note(session: trio_sse.Session, reason: trio_sse.EndReason) -> None:
    print(f"session {session.short_id} ended: {reason}", flush=True)
