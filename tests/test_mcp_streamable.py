"""Streamable HTTP: what is answered, on which response, in which order."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing
from mcp_parts import Parts, call, initialize, rpc, said, serving

from trio_sse import Event
from trio_sse.mcp import McpApp, McpLimits
from trio_sse.mcp.testing import ACCEPT, Client, RequestFailed, connect
from trio_sse.testing import Stream, request

PROGRESS = {"_meta": {"progressToken": "token"}}
OLD = ["2025-03-26", "2025-06-18", "2025-11-25"]


async def messages(stream: Stream) -> list[dict[str, Any]]:
    """All messages on ``stream``, to its end."""
    if stream.headers["content-type"] == "application/json":
        return [json.loads(await stream.read())]
    found = []
    try:
        while True:
            data = (await stream.receive_event()).data
            if data:
                found.append(json.loads(data))
    except trio.EndOfChannel:
        return found


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return [message.get("method", "answer") for message in found]


class TestRevisions:
    @pytest.mark.parametrize("version", OLD)
    async def test_each_has_a_session(self, version: str) -> None:
        async with serving(version=version) as (app, client, _):
            assert client.version == version
            assert list(app.sessions) == [client.session_id]
            assert said(await client.request("tools/call", call("echo", a=1))) == {"a": 1}
        assert not app.sessions

    async def test_one_that_is_not_known_is_answered_with_one_that_is(self) -> None:
        async with serving(version="1999-01-01") as (_, client, _):
            assert client.version == "2025-11-25"

    async def test_a_header_that_names_none_is_refused(self) -> None:
        async with serving() as (_, client, _):
            client.headers["mcp-protocol-version"] = "1999-01-01"
            assert (await client.post(rpc(1, "ping"))).status == 400
            client.headers["mcp-protocol-version"] = client.version

    @pytest.mark.parametrize("version", OLD)
    async def test_only_clients_that_know_it_are_primed(self, version: str) -> None:
        async with serving(version=version) as (_, client, _), client.listen() as stream:
            first = await stream.receive_block()
            if version == "2025-11-25":
                assert first == Event("", id=first.id, retry=1000)
                assert first.id is not None
            else:
                assert first.data is None


class TestAnswers:
    async def test_one_that_comes_at_once_is_json(self) -> None:
        async with serving() as (_, client, _), client.open_request("ping") as stream:
            assert stream.headers["content-type"] == "application/json"
            assert json.loads(await stream.read())["result"] == {}

    async def test_one_that_takes_a_while_is_an_event_stream(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with (
            serving() as (_, client, parts),
            client.open_request("tools/call", call("wait")) as stream,
        ):
            assert stream.headers["content-type"] == "text/event-stream"
            assert stream.headers["cache-control"] == "no-store"
            parts.go.set()
            assert kinds(await messages(stream)) == ["answer"]

    @pytest.mark.parametrize("answers", ["sse", "json"])
    async def test_as_it_was_asked_for(self, answers: Any) -> None:
        expected = {"sse": "text/event-stream", "json": "application/json"}[answers]
        async with (
            serving(answers=answers) as (_, client, _),
            client.open_request("tools/call", call("progress") | PROGRESS) as stream,
        ):
            assert stream.headers["content-type"] == expected

    async def test_notifications_come_before_their_result_in_order(self) -> None:
        """Each time, of a hundred: not when the scheduler happens to be kind."""
        async with serving() as (_, client, _):
            for _ in range(100):
                params = call("progress", times=5) | PROGRESS
                async with client.open_request("tools/call", params) as stream:
                    found = await messages(stream)
                assert kinds(found) == ["notifications/progress"] * 5 + ["answer"]
                assert [m["params"]["progress"] for m in found[:-1]] == [0, 1, 2, 3, 4]

    async def test_ids_that_look_alike_are_two(self) -> None:
        async with serving() as (_, client, parts):

            async def ask(id: int | str) -> None:
                async with client.open_request("tools/call", call("wait"), id=id) as stream:
                    found = await messages(stream)
                answered.append(found[-1]["id"])
                assert found[-1].get("result"), found

            answered: list[int | str] = []
            with trio.fail_after(5):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ask, 1)
                    nursery.start_soon(ask, "1")
                    while parts.log != ["begins", "begins"]:
                        await trio.testing.wait_all_tasks_blocked()
                    parts.go.set()
            assert sorted(answered, key=repr) == ["1", 1]

    async def test_a_cancellation_names_one_of_them(self) -> None:
        async with serving() as (_, client, parts):
            results: dict[int | str, dict[str, Any]] = {}

            async def ask(id: int | str) -> None:
                async with client.open_request("tools/call", call("wait"), id=id) as stream:
                    results[id] = (await messages(stream))[-1]

            with trio.fail_after(5):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ask, "1")
                    await parts.waiting.wait()
                    nursery.start_soon(ask, 1)  # the last to come, and not the one that is meant
                    while parts.log != ["begins", "begins"]:
                        await trio.testing.wait_all_tasks_blocked()
                    await client.notify("notifications/cancelled", {"requestId": "1"})
                    while len(results) < 1:
                        await trio.testing.wait_all_tasks_blocked()
                    assert list(results) == ["1"]
                    parts.go.set()
            assert results["1"]["error"]["code"] == -32800
            assert results[1]["result"]
            assert parts.log == ["begins", "begins", "cancelled", "returns"]

    async def test_an_id_in_use_is_refused_and_the_first_is_untouched(self) -> None:
        async with serving() as (_, client, parts), trio.open_nursery() as nursery:

            async def ask() -> None:
                async with client.open_request("tools/call", call("wait"), id=7) as stream:
                    assert "result" in (await messages(stream))[-1]

            nursery.start_soon(ask)
            await parts.waiting.wait()
            response = await client.post(rpc(7, "tools/call", call("echo")))
            assert response.status == 400
            parts.go.set()

    async def test_what_a_handler_raises_is_its_answer(self) -> None:
        async with serving() as (_, client, _):
            with pytest.raises(RequestFailed, match="on purpose"):
                await client.request("tools/call", call("fail"))
            await client.request("ping")

    async def test_an_unknown_method(self) -> None:
        async with serving() as (_, client, _):
            with pytest.raises(RequestFailed) as failed:
                await client.request("no/such")
            assert failed.value.code == -32601


class TestSeveralAtOnce:
    """In 2025-03-26 a body may be a list."""

    async def test_answers_come_together(self) -> None:
        async with serving(version="2025-03-26") as (_, client, _):
            response = await client.post([rpc(1, "ping"), rpc("1", "ping"), rpc(2, "ping")])
            assert [answer["id"] for answer in response.json()] == [1, "1", 2]

    async def test_without_requests_there_is_no_answer(self) -> None:
        async with serving(version="2025-03-26") as (_, client, _):
            note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
            assert (await client.post([note, note])).status == 202

    @pytest.mark.parametrize(
        ("version", "body"),
        [("2025-06-18", [rpc(1, "ping")]), ("2025-03-26", []), ("2025-03-26", [1])],
    )
    async def test_refused(self, version: str, body: list[Any]) -> None:
        async with serving(version=version) as (_, client, _):
            assert (await client.post(body)).status == 400

    async def test_they_count_one_by_one(self) -> None:
        limits = McpLimits(max_in_flight=2)
        async with serving(version="2025-03-26", limits=limits) as (app, client, _):
            assert (await client.post([rpc(i, "ping") for i in range(3)])).status == 429
            assert (await client.post([rpc(i, "ping") for i in range(2)])).status == 200
            (session,) = app.sessions.values()
            assert session.in_flight == 0


class TestOwnStream:
    async def test_what_was_said_before_it_opened_comes_first(self) -> None:
        async with serving() as (app, client, _):
            assert app.notify_all("notifications/a").kept == (client.session_id,)
            async with client.listen() as stream:
                assert (await client.receive(stream))["method"] == "notifications/a"
                assert app.notify_all("notifications/b").sent == (client.session_id,)
                assert (await client.receive(stream))["method"] == "notifications/b"
            async with client.listen() as stream:
                app.notify_all("notifications/c")
                assert (await client.receive(stream))["method"] == "notifications/c"

    async def test_a_newer_one_takes_over_when_the_older_has_ended(self) -> None:
        """None of the session's messages goes to the older any more, and none is lost."""
        async with serving() as (app, client, _), client.listen() as older:
            app.notify_all("notifications/a")
            assert (await client.receive(older))["method"] == "notifications/a"
            async with client.listen() as newer:
                assert older.is_complete
                app.notify_all("notifications/b")
                assert (await client.receive(newer))["method"] == "notifications/b"
                assert "notifications/b" not in older.body.decode()

    async def test_it_takes_over_from_one_that_is_stuck(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with serving() as (app, client, _), client.listen(window=1):
            for number in range(3):
                app.notify_all("notifications/x", {"number": number})
            with trio.fail_after(10):
                async with client.listen() as newer:
                    numbers = [(await client.receive(newer))["params"]["number"] for _ in "abc"]
            assert numbers == [0, 1, 2]

    async def test_a_keep_alive_when_nothing_is_said(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with (
            serving(limits=McpLimits(keep_alive=7)) as (_, client, _),
            client.listen() as stream,
        ):
            await stream.receive_block()
            await trio.sleep(21.5)
            assert stream.body.endswith(b"data:\n\n" + b":\n\n" * 3)

    @pytest.mark.parametrize(("headers", "status"), [({}, 405), ({"mcp-session-id": "x"}, 404)])
    async def test_without_a_session_there_is_none(
        self, headers: dict[str, str], status: int
    ) -> None:
        async with McpApp(Parts().server) as app:
            response = await request(app, "GET", "/mcp", headers={"accept": ACCEPT, **headers})
            assert response.status == status


class TestComingBack:
    async def test_nothing_is_missed_and_nothing_comes_twice(self) -> None:
        async with serving() as (_, client, parts):
            params = call("progress", times=3, end=False) | PROGRESS
            async with client.open_request("tools/call", params) as stream:
                first = await stream.receive_event()
                second = await stream.receive_event()
            assert first.data == ""
            async with client.listen(second.id) as stream:
                rest = await messages(stream)
            numbers = [m["params"]["progress"] for m in rest if "method" in m]
            assert numbers == [1, 2]
            assert kinds(rest)[-1] == "answer"
            assert parts.log == []

    async def test_a_client_is_sent_away_and_comes_back_for_the_rest(self) -> None:
        """Polling: the server ends the response early, the request goes on."""
        async with serving() as (_, client, parts):
            params = call("progress", times=1, end=True) | PROGRESS
            async with client.open_request("tools/call", params) as stream:
                assert kinds(await messages(stream)) == ["notifications/progress"]
                assert stream.is_complete
                assert stream.retry == 1000
                last = stream.last_event_id
            assert parts.log == ["begins"]
            async with client.listen(last) as stream:
                parts.go.set()
                assert kinds(await messages(stream)) == ["notifications/progress", "answer"]

    async def test_it_can_be_sent_away_before_anything_was_said(self) -> None:
        async with serving() as (_, client, parts):
            params = call("progress", times=0, end=True)
            async with client.open_request("tools/call", params) as stream:
                assert await messages(stream) == []
                last = stream.last_event_id
            assert last
            parts.go.set()
            async with client.listen(last) as stream:
                assert kinds(await messages(stream)) == ["answer"]

    async def test_the_answer_can_be_had_again(self) -> None:
        async with serving(answers="sse") as (_, client, _):
            async with client.open_request("ping") as stream:
                assert kinds(await messages(stream)) == ["answer"]
                primed = stream.last_event_id.rpartition("-")[0] + "-0"
            for _ in range(2):
                async with client.listen(primed) as stream:
                    assert kinds(await messages(stream)) == ["answer"]

    async def test_only_to_what_was_said_in_the_same_session(self) -> None:
        async with serving(answers="sse") as (app, ours, _), connect(app) as theirs:
            secret = call("echo", secret="ours")
            async with ours.open_request("tools/call", secret) as stream:
                await messages(stream)
                place = stream.last_event_id.rpartition("-")[0] + "-0"
            for _ in range(5):  # so that all numbers that we have, they have too
                await theirs.request("tools/call", call("echo", secret="theirs"))
            async with theirs.listen(place) as stream:
                assert stream.status == 400
                assert b"ours" not in await stream.read()

    @pytest.mark.parametrize("place", ["x", "1-2-3", "-", "\u00e9-0-0"])
    async def test_an_id_of_nothing_is_refused(self, place: str) -> None:
        async with serving() as (_, client, _), client.listen(place) as stream:
            assert stream.status == 400

    async def test_what_is_kept_is_bounded_and_answers_are_kept_longest(self) -> None:
        limits = McpLimits(max_kept_events=64, max_kept_bytes=10_000)
        async with serving(limits=limits, answers="sse") as (app, client, parts):
            params = call("progress", times=1, end=True) | PROGRESS
            async with client.open_request("tools/call", params) as stream:
                await messages(stream)
                last = stream.last_event_id
            parts.go.set()
            for number in range(500):
                app.notify_all("notifications/x", {"number": number, "long": "." * 100})
            async with client.listen(last) as stream:
                assert kinds(await messages(stream)) == ["notifications/progress", "answer"]
            async with client.listen() as stream:
                found = [await client.receive(stream) for _ in range(20)]
                assert len(stream.body) < 20_000
            assert found[0]["params"]["number"] > 300

    async def test_where_nothing_is_kept_there_are_no_ids(self) -> None:
        async with (
            serving(limits=McpLimits(max_kept_events=0)) as (_, client, _),
            client.open_request("tools/call", call("progress") | PROGRESS) as stream,
        ):
            assert kinds(await messages(stream)) == ["notifications/progress"] * 3 + ["answer"]
            assert stream.last_event_id == ""


class TestAsking:
    """The server asks the client, while it handles a request of the client's."""

    async def test_for_a_sample(self) -> None:
        async def sample(params: dict[str, Any]) -> Any:
            assert params["maxTokens"] == 9
            content = {"type": "text", "text": "indeed"}
            return {"role": "assistant", "content": content, "model": "none"}

        replies = {"sampling/createMessage": sample}
        async with serving(replies=replies, capabilities={"sampling": {}}) as (_, client, _):
            assert said(await client.request("tools/call", call("sample"))) == "indeed"

    async def test_for_a_choice(self) -> None:
        async def elicit(_params: dict[str, Any]) -> Any:
            return {"action": "accept", "content": {"it": "this"}}

        replies = {"elicitation/create": elicit}
        async with serving(replies=replies, capabilities={"elicitation": {}}) as (_, client, _):
            assert said(await client.request("tools/call", call("elicit"))) == {"it": "this"}

    async def test_for_roots(self) -> None:
        async def roots(_params: dict[str, Any]) -> Any:
            return {"roots": [{"uri": "file:///here"}]}

        async with serving(replies={"roots/list": roots}, capabilities={"roots": {}}) as (
            _,
            client,
            _,
        ):
            assert said(await client.request("tools/call", call("roots"))) == ["file:///here"]

    async def test_outside_of_a_request(self) -> None:
        async with serving() as (app, client, _), client.listen() as stream:
            (session,) = app.sessions.values()

            async def pong(_params: dict[str, Any]) -> Any:
                return {}

            client.answers["ping"] = pong
            with trio.fail_after(5):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(session.connection.ping)
                    await client.receive(stream)

    async def test_where_answers_are_json_there_is_no_way(self) -> None:
        async with serving(answers="json") as (_, client, _):
            with pytest.raises(RequestFailed):
                await client.request("tools/call", call("sample"))


class TestRefusals:
    @pytest.fixture
    async def client(self) -> Any:
        async with serving() as (_, client, _):
            yield client

    async def raw(self, client: Client, body: bytes, **headers: str) -> Any:
        given = {**client.headers, "content-type": "application/json", **headers}
        return await request(client._app, "POST", "/mcp", headers=given, body=body)

    @pytest.mark.parametrize(
        ("body", "code"),
        [
            (b"", -32700),
            (b"{", -32700),
            (b"\xff", -32700),
            (b"NaN", -32700),
            (b"[" * 100_000, -32700),
            (b"1", -32600),
            (b"{}", -32600),
            (b'{"jsonrpc": "1.0", "id": 1, "method": "ping"}', -32600),
            (b'{"jsonrpc": "2.0", "id": 1.5, "method": "ping"}', -32600),
            (b'{"jsonrpc": "2.0", "id": true, "method": "ping"}', -32600),
            (b'{"jsonrpc": "2.0", "id": null, "method": "ping"}', -32600),
            (b'{"jsonrpc": "2.0", "id": 1, "method": 1}', -32600),
        ],
    )
    async def test_what_is_no_message(self, client: Client, body: bytes, code: int) -> None:
        response = await self.raw(client, body)
        assert response.status == 400
        assert response.json()["error"]["code"] == code
        assert response.json()["id"] is None

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"content-type": "text/plain"}, 415),
            ({"accept": "application/json"}, 406),
            ({"accept": "text/event-stream"}, 406),
            ({"mcp-session-id": "made-up"}, 404),
            ({"origin": "https://evil.example"}, 403),
            ({"host": "evil.example"}, 403),
        ],
    )
    async def test_headers(self, client: Client, headers: dict[str, str], status: int) -> None:
        body = json.dumps(rpc(1, "ping")).encode()
        assert (await self.raw(client, body, **headers)).status == status

    async def test_a_body_that_is_too_large(self) -> None:
        async with serving(limits=McpLimits(max_body=500)) as (_, client, _):
            assert (await client.post(rpc(1, "ping", {"x": "." * 600}))).status == 413
            assert (await client.post(rpc(1, "ping"))).status == 200

    async def test_initialize_twice(self, client: Client) -> None:
        assert (await client.post(initialize())).status == 400

    async def test_a_session_is_needed(self) -> None:
        async with McpApp(Parts().server) as app:
            accept = {"accept": ACCEPT}
            response = await request(app, "POST", "/mcp", headers=accept, json=rpc(1, "ping"))
            assert response.status == 400

    async def test_an_initialize_that_fails_leaves_no_session(self) -> None:
        async with McpApp(Parts().server) as app:
            body = rpc(1, "initialize", {"protocolVersion": 5})
            response = await request(app, "POST", "/mcp", headers={"accept": ACCEPT}, json=body)
            assert response.status == 400
            assert "mcp-session-id" not in response.headers
            await trio.testing.wait_all_tasks_blocked()
            assert not app.sessions
            assert not app.hub.sessions
