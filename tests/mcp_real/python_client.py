"""The Python SDK's client, on Trio: ``python python_client.py legacy|modern|sse URL``.

It prints what `features.mjs` does, for the same features.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import mcp_types as types
import trio
from mcp import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

PATIENCE = 20
NO_RESUME = {"sse": "HTTP+SSE has no event ids", "modern": "the revision has no resuming"}


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)  # noqa: T201  # it is read from there


async def feature(name: str, test: Callable[[], Awaitable[str]]) -> None:
    try:
        with trio.fail_after(PATIENCE):
            detail = await test()
    except Exception:  # whatever it was is what is to be told
        say(feature=name, ok=False, detail=traceback.format_exc())
    else:
        say(feature=name, ok=True, detail=detail)


def same(found: object, wanted: object) -> str:
    assert found == wanted, f"{found!r}, and not {wanted!r}"
    return repr(found)


class Heard:
    """What comes without being asked for."""

    def __init__(self) -> None:
        self.changed = trio.Event()
        self.logged: list[Any] = []

    async def message(self, message: object) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            self.changed.set()

    async def log(self, params: types.LoggingMessageNotificationParams) -> None:
        self.logged.append(params.data)


async def sample(ctx: object, params: object) -> types.CreateMessageResult:
    content = types.TextContent(type="text", text="Paris")
    return types.CreateMessageResult(role="assistant", content=content, model="none")


async def elicit(ctx: object, params: types.ElicitRequestFormParams) -> types.ElicitResult:
    asked = params.requested_schema["properties"]
    return types.ElicitResult(action="accept", content=dict.fromkeys(asked, "Ada"))


class Features:
    def __init__(self, client: Client, heard: Heard, *, stateless: bool) -> None:
        self.client = client
        self.heard = heard
        self.stateless = stateless

    async def call(self, tool: str, progress: Any = None, **arguments: str) -> str:
        result = await self.client.call_tool(tool, arguments, progress_callback=progress)
        [content] = result.content
        assert isinstance(content, types.TextContent)
        return content.text

    async def list(self) -> str:
        tools = (await self.client.list_tools()).tools
        resources = (await self.client.list_resources()).resources
        prompts = (await self.client.list_prompts()).prompts
        assert "test_simple_text" in {tool.name for tool in tools}
        return f"{len(tools)} tools, {len(resources)} resources, {len(prompts)} prompts"

    async def call_tool(self) -> str:
        text = await self.call("test_simple_text")
        return same(text, "This is a simple text response for testing.")

    async def progress(self) -> str:
        seen: list[float] = []

        async def note(progress: float, total: float | None, message: str | None) -> None:
            seen.append(progress)

        await self.call("test_tool_with_progress", note)
        return same(seen, [0, 50, 100])  # all of them before the result, in order

    async def sample(self) -> str:
        if self.stateless:
            text = await self.call("test_input_required_result_sampling")
            return same(text, "Model said: Paris")
        return same(await self.call("test_sampling", prompt="?"), "LLM response: Paris")

    async def elicit(self) -> str:
        if self.stateless:
            text = await self.call("test_input_required_result_elicitation")
            return same(text, "Hello, Ada!")
        text = await self.call("test_elicitation", message="Who are you?")
        return same(text, 'User response: action=accept, content={"response": "Ada"}')

    async def notified(self) -> str:
        if self.stateless:
            async with self.client.listen(tools_list_changed=True) as subscription:
                await self.call("test_trigger_tool_change")
                async for event in subscription:
                    return type(event).__name__
        await self.call("test_trigger_tool_change")
        await self.heard.changed.wait()
        return "tools/list_changed"

    async def cancel(self) -> str:
        name = str(os.getpid())
        with trio.CancelScope() as scope:

            async def begun(progress: float, total: float | None, message: str | None) -> None:
                scope.cancel()

            await self.call("test_wait", begun, name=name)
        assert scope.cancelled_caught
        return same(await self.call("test_was_cancelled", name=name), "yes")

    async def resume(self) -> str:
        same(await self.call("test_cut"), "answered after the cut")
        return same(self.heard.logged, ["cut here", "after"])  # each once


async def main(how: str, url: str) -> None:
    heard = Heard()
    transport = sse_client(url) if how == "sse" else streamable_http_client(url)
    client = Client(
        transport,
        mode="auto" if how == "modern" else "legacy",
        sampling_callback=sample,
        elicitation_callback=elicit,
        message_handler=heard.message,
        logging_callback=heard.log,
    )

    # Not under a time limit, which could not be left while the client is open.
    async with client:
        stateless = client.protocol_version == "2026-07-28"
        assert stateless == (how == "modern")
        say(feature="connect", ok=True, detail=client.protocol_version)
        features = Features(client, heard, stateless=stateless)
        await feature("list", features.list)
        await feature("call", features.call_tool)
        await feature("progress", features.progress)
        await feature("sample", features.sample)
        await feature("elicit", features.elicit)
        await feature("notified", features.notified)
        await feature("cancel", features.cancel)
        if how in NO_RESUME:
            say(feature="resume", none=NO_RESUME[how])
        else:
            await feature("resume", features.resume)
    say(feature="end", ok=True, detail="")


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
