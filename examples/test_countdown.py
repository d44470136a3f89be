"""Tests of `countdown.py`, in memory and in no time."""

import pytest
import trio
import trio.testing
from countdown import count_down, make_app

import trio_sse
from trio_sse import testing


async def test_it_counts_down_and_ends(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        testing.lifespan(make_app()) as app,
        testing.open_stream(app, "/?from=3") as stream,
    ):
        assert stream.status == 200
        events = [await stream.receive_event() for _ in range(4)]
        assert [event.data for event in events] == ["3", "2", "1", "lift-off"]
        with pytest.raises(trio.EndOfChannel):
            await stream.receive_event()
        assert stream.is_complete
    assert trio.current_time() == 3  # seconds that nobody waited


async def test_what_is_no_number_is_ten(autojump_clock: trio.testing.MockClock) -> None:
    async with testing.lifespan(make_app()) as app:
        answer = await testing.request(app, "GET", "/?from=now")
        assert answer.text.count("event: tick") == 10


def test_the_client_may_leave_at_any_moment() -> None:
    async def scenario(moment: testing.Moment) -> None:
        came, went = [], []
        hub = trio_sse.Hub()
        hub.hooks.on_register(came.append)
        hub.hooks.on_unregister(lambda session, reason: went.append(reason))
        endpoint = trio_sse.Endpoint(hub, count_down, resume=False)
        async with hub, testing.open_stream(endpoint, "/?from=2") as stream:
            moment.inject(stream.leave)
            await stream.wait_finished()
        assert len(came) == len(went) == 1

    print(testing.explore(scenario))
