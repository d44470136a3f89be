"""The MCP server that the conformance suite and the clients of the matrix talk to.

The names and answers of its tools, resources and prompts are those that the suite asks for.
It is written for the SDK's low-level `Server` and knows nothing of what carries it.
"""

from __future__ import annotations

import base64
import json
import warnings
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import fixture_rounds as rounds
import mcp_types as types
import trio
from mcp.server import Server, ServerRequestContext
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ResourceUpdated,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPError

Context: TypeAlias = ServerRequestContext[dict[str, Any]]
Answer: TypeAlias = "str | list[Any] | types.InputRequiredResult"
Run: TypeAlias = Callable[[Context, types.CallToolRequestParams], Awaitable[Answer]]

PIXEL: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4"
    "2mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
)
SILENCE: Final = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="
WATCHED: Final = "test://watched-resource"
PAUSE: Final = 0.05
"""Seconds between the steps of a tool that takes its time."""

CUT_HERE: Final = "cut here"
PATIENCE: Final = 5.0
"""Seconds after which what should have happened has not."""

cancelled: defaultdict[str, trio.Event] = defaultdict(trio.Event)
"""Which calls of `test_wait` are over."""
listeners: set[object] = set()
"""The requests of those that listen to the bus."""
one_left = trio.lowlevel.ParkingLot()
bus = InMemorySubscriptionBus()
"""What happens on the server, for those who have called `subscriptions/listen`."""

# What the suite and its clients ask of a server includes what newer revisions deprecate.
warnings.filterwarnings("ignore", message=".*deprecated as of 2026-07-28.*")


def text(what: str) -> types.TextContent:
    return types.TextContent(type="text", text=what)


def image() -> types.ImageContent:
    return types.ImageContent(type="image", data=PIXEL, mime_type="image/png")


def embedded(uri: str, what: str, kind: str = "text/plain") -> types.EmbeddedResource:
    contents = types.TextResourceContents(uri=uri, mime_type=kind, text=what)
    return types.EmbeddedResource(type="resource", resource=contents)


# Tools.


@dataclass(frozen=True)
class Tool:
    description: str
    schema: dict[str, Any]
    run: Run


TOOLS: dict[str, Tool] = {}


def tool(description: str, schema: dict[str, Any] | None = None) -> Callable[[Run], Run]:
    """Make a function a tool, under its own name."""

    def add(run: Run) -> Run:
        TOOLS[run.__name__] = Tool(description, schema or {"type": "object"}, run)
        return run

    return add


def one_string(name: str) -> dict[str, Any]:
    """The schema of the object whose one member is a string."""
    return {"type": "object", "properties": {name: {"type": "string"}}, "required": [name]}


def constant(name: str, description: str, *content: Any) -> None:
    """Add a tool that always answers the same."""

    async def run(ctx: Context, params: types.CallToolRequestParams) -> Answer:
        return list(content)

    TOOLS[name] = Tool(description, {"type": "object"}, run)


constant("test_simple_text", "One text", text("This is a simple text response for testing."))
constant("test_image_content", "One image", image())
constant(
    "test_audio_content",
    "One sound",
    types.AudioContent(type="audio", data=SILENCE, mime_type="audio/wav"),
)
constant(
    "test_embedded_resource",
    "One resource",
    embedded("test://embedded-resource", "This is an embedded resource content."),
)
constant(
    "test_multiple_content_types",
    "A text, an image and a resource",
    text("Multiple content types test:"),
    image(),
    embedded("test://mixed-content-resource", '{"test": "data", "value": 123}', "application/json"),
)


@tool("Logs three messages while it works")
async def test_tool_with_logging(ctx: Context, params: types.CallToolRequestParams) -> Answer:
    for what in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.session.send_log_message("info", what, related_request_id=ctx.request_id)
        await trio.sleep(PAUSE)
    return "Tool with logging executed successfully"


@tool("Logs, if the request asks for it")
async def test_logging_tool(ctx: Context, params: types.CallToolRequestParams) -> Answer:
    await ctx.session.send_log_message("info", "logged", related_request_id=ctx.request_id)
    return "Logged"


@tool("Reports its progress three times")
async def test_tool_with_progress(ctx: Context, params: types.CallToolRequestParams) -> Answer:
    for step in (0, 50, 100):
        await ctx.session.report_progress(step, 100, f"Completed step {step} of 100")
        await trio.sleep(PAUSE)
    return str((ctx.meta or {}).get("progress_token", 0))


@tool("Fails")
async def test_error_handling(ctx: Context, params: types.CallToolRequestParams) -> Answer:
    raise RuntimeError("This tool intentionally returns an error for testing")


@tool("Asks the client's model", one_string("prompt"))
async def test_sampling(ctx: Context, params: types.CallToolRequestParams) -> Answer:
    result = await ctx.session.create_message(
        messages=[types.SamplingMessage(role="user", content=text(argument(params, "prompt")))],
        max_tokens=100,
        related_request_id=ctx.request_id,
    )
    content = result.content
    return f"LLM response: {content.text if content.type == 'text' else 'No response'}"


@tool("Asks the client's user", one_string("message"))
async def test_elicitation(ctx: Context, params: types.CallToolRequestParams) -> Answer:
    message = argument(params, "message")
    result = await ctx.session.elicit_form(message, one_string("response"), ctx.request_id)
    return f"User response: action={result.action}, content={json.dumps(result.content)}"


@tool("Asks the client's user, with a default for every kind of member")
async def test_elicitation_sep1034_defaults(
    ctx: Context, params: types.CallToolRequestParams
) -> Answer:
    asked = {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {
            "type": "string",
            "enum": ["active", "inactive", "pending"],
            "default": "active",
        },
        "verified": {"type": "boolean", "default": True},
    }
    schema = {"type": "object", "properties": asked, "required": []}
    result = await ctx.session.elicit_form("Who are you?", schema, ctx.request_id)
    return f"Elicitation completed: action={result.action}, content={json.dumps(result.content)}"


@tool("Asks the client's user to choose, in every way there is")
async def test_elicitation_sep1330_enums(
    ctx: Context, params: types.CallToolRequestParams
) -> Answer:
    plain = ["option1", "option2", "option3"]
    titled = [{"const": f"value{n}", "title": f"Option {n}"} for n in (1, 2, 3)]
    asked = {
        "untitledSingle": {"type": "string", "enum": plain},
        "titledSingle": {"type": "string", "oneOf": titled},
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": plain}},
        "titledMulti": {"type": "array", "items": {"anyOf": titled}},
        "legacyEnum": {
            "type": "string",
            "enum": plain,
            "enumNames": ["Option 1", "Option 2", "Option 3"],
        },
    }
    schema = {"type": "object", "properties": asked, "required": []}
    result = await ctx.session.elicit_form("Choose", schema, ctx.request_id)
    return f"Elicitation completed: action={result.action}, content={json.dumps(result.content)}"


@tool("Closes its own stream, and answers when the client is back")
async def test_reconnection(ctx: Context, params: types.CallToolRequestParams) -> Answer:
    await ctx.session.send_log_message("info", "before", related_request_id=ctx.request_id)
    if ctx.close_sse_stream is not None:
        await ctx.close_sse_stream()
    await trio.sleep(4 * PAUSE)
    await ctx.session.send_log_message("info", "after", related_request_id=ctx.request_id)
    return "Reconnection test completed"


@tool("Says where the connection should be cut, and goes on after that")
async def test_cut(ctx: Context, params: types.CallToolRequestParams) -> Answer:
    await ctx.session.send_log_message("info", CUT_HERE, related_request_id=ctx.request_id)
    await trio.sleep(4 * PAUSE)
    await ctx.session.send_log_message("info", "after", related_request_id=ctx.request_id)
    return "answered after the cut"


@tool("Never answers", one_string("name"))
async def test_wait(ctx: Context, params: types.CallToolRequestParams) -> Answer:
    try:
        await ctx.session.report_progress(0, 1, "waiting")
        return await trio.sleep_forever()
    finally:
        cancelled[argument(params, "name")].set()


@tool("Reports progress without end, as fast as it is taken")
async def test_flood(ctx: Context, params: types.CallToolRequestParams) -> Answer:
    while True:
        await ctx.session.report_progress(0, 1, "x" * 65_536)


@tool("Answers when `test_wait` of that name was cancelled", one_string("name"))
async def test_was_cancelled(ctx: Context, params: types.CallToolRequestParams) -> Answer:
    with trio.move_on_after(PATIENCE):
        await cancelled[argument(params, "name")].wait()
        return "yes"
    return "no"


@tool("Counts those that listen, when there is nobody left or after a while")
async def test_listeners(ctx: Context, params: types.CallToolRequestParams) -> Answer:
    with trio.move_on_after(PATIENCE):
        while listeners:
            await one_left.park()
    return str(len(listeners))


@tool("Needs a client that can sample")
async def test_missing_capability(ctx: Context, params: types.CallToolRequestParams) -> Answer:
    capabilities = ctx.session.client_capabilities
    if capabilities is None or capabilities.sampling is None:
        raise MCPError(
            code=types.MISSING_REQUIRED_CLIENT_CAPABILITY,
            message="this tool requires that the client can sample",
            data={"requiredCapabilities": {"sampling": {}}},
        )
    return "The client can sample"


@tool("Has the lists of tools change")
async def test_trigger_tool_change(ctx: Context, params: types.CallToolRequestParams) -> Answer:
    await bus.publish(ToolsListChanged())
    if ctx.protocol_version != rounds.STATELESS:
        await ctx.session.send_tool_list_changed()
    return "changed"


@tool("Has the list of prompts change")
async def test_trigger_prompt_change(ctx: Context, params: types.CallToolRequestParams) -> Answer:
    await bus.publish(PromptsListChanged())
    if ctx.protocol_version != rounds.STATELESS:
        await ctx.session.send_prompt_list_changed()
    return "changed"


@tool("Has the watched resource change")
async def test_trigger_resource_update(ctx: Context, params: types.CallToolRequestParams) -> Answer:
    await bus.publish(ResourceUpdated(uri=WATCHED))
    if ctx.protocol_version != rounds.STATELESS:
        await ctx.session.send_resource_updated(WATCHED)
    return "updated"


@tool(
    "Has an argument that is mirrored into a header",
    {
        "type": "object",
        "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
    },
)
async def test_x_mcp_header(ctx: Context, params: types.CallToolRequestParams) -> Answer:
    return f"region={(params.arguments or {}).get('region')}"


@tool(
    "Has a schema with what JSON Schema of 2020-12 can say",
    {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {
            "address": {
                "$anchor": "addressDef",
                "type": "object",
                "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
            }
        },
        "properties": {
            "name": {"type": "string"},
            "address": {"$ref": "#/$defs/address"},
            "contactMethod": {"type": "string", "enum": ["phone", "email"]},
            "phone": {"type": "string"},
            "email": {"type": "string"},
        },
        "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
        "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
        "then": {"required": ["phone"]},
        "else": {"required": ["email"]},
        "additionalProperties": False,
    },
)
async def json_schema_2020_12_tool(ctx: Context, params: types.CallToolRequestParams) -> Answer:
    return json.dumps(params.arguments)


for _name, _run in rounds.TOOLS.items():
    TOOLS[_name] = Tool("Needs input before it can answer", {"type": "object"}, _run)


def argument(params: types.CallToolRequestParams, name: str) -> str:
    return str((params.arguments or {})[name])


async def list_tools(
    ctx: Context, params: types.PaginatedRequestParams | None
) -> types.ListToolsResult:
    return types.ListToolsResult(
        tools=[
            types.Tool(name=name, description=each.description, input_schema=each.schema)
            for name, each in TOOLS.items()
        ]
    )


async def call_tool(
    ctx: Context, params: types.CallToolRequestParams
) -> types.CallToolResult | types.InputRequiredResult:
    if params.name not in TOOLS:
        raise MCPError(code=types.INVALID_PARAMS, message=f"no such tool: {params.name}")
    try:
        answer = await TOOLS[params.name].run(ctx, params)
    except RuntimeError as error:
        return types.CallToolResult(content=[text(str(error))], is_error=True)
    if isinstance(answer, types.InputRequiredResult):
        return answer
    return types.CallToolResult(content=[text(answer)] if isinstance(answer, str) else answer)


# Resources.

RESOURCES: Final[dict[str, tuple[str, str | bytes]]] = {
    "test://static-text": ("text/plain", "This is the content of the static text resource."),
    "test://static-binary": ("image/png", base64.b64decode(PIXEL)),
    WATCHED: ("text/plain", "Watched resource content"),
}
TEMPLATE: Final = "test://template/{id}/data"


async def list_resources(
    ctx: Context, params: types.PaginatedRequestParams | None
) -> types.ListResourcesResult:
    return types.ListResourcesResult(
        resources=[
            types.Resource(uri=uri, name=uri.partition("//")[2], mime_type=kind, description=uri)
            for uri, (kind, _) in RESOURCES.items()
        ]
    )


async def list_templates(
    ctx: Context, params: types.PaginatedRequestParams | None
) -> types.ListResourceTemplatesResult:
    template = types.ResourceTemplate(uri_template=TEMPLATE, name="template", description="by id")
    return types.ListResourceTemplatesResult(resource_templates=[template])


async def read_resource(
    ctx: Context, params: types.ReadResourceRequestParams
) -> types.ReadResourceResult:
    uri = str(params.uri)
    before, after = TEMPLATE.split("{id}")
    if uri.startswith(before) and uri.endswith(after):
        which = uri.removeprefix(before).removesuffix(after)
        data = {"id": which, "templateTest": True, "data": f"Data for ID: {which}"}
        kind, what = "application/json", json.dumps(data)
    elif uri in RESOURCES:
        kind, what = RESOURCES[uri]  # type: ignore[assignment]  # bytes too, told apart below
    else:
        raise MCPError(
            code=types.INVALID_PARAMS, message=f"no such resource: {uri}", data={"uri": uri}
        )
    if isinstance(what, str):
        return types.ReadResourceResult(
            contents=[types.TextResourceContents(uri=uri, mime_type=kind, text=what)]
        )
    blob = base64.b64encode(what).decode()
    return types.ReadResourceResult(
        contents=[types.BlobResourceContents(uri=uri, mime_type=kind, blob=blob)]
    )


async def nothing(ctx: Context, params: Any) -> types.EmptyResult:
    return types.EmptyResult()


# Prompts.


def said(*content: Any) -> types.GetPromptResult:
    return types.GetPromptResult(
        messages=[types.PromptMessage(role="user", content=each) for each in content]
    )


PROMPTS: Final[dict[str, list[str]]] = {
    "test_simple_prompt": [],
    "test_prompt_with_arguments": ["arg1", "arg2"],
    "test_prompt_with_embedded_resource": ["resourceUri"],
    "test_prompt_with_image": [],
    "test_input_required_result_prompt": [],
}
"""Each one's arguments."""


async def list_prompts(
    ctx: Context, params: types.PaginatedRequestParams | None
) -> types.ListPromptsResult:
    return types.ListPromptsResult(
        prompts=[
            types.Prompt(
                name=name,
                description=name.replace("_", " "),
                arguments=[
                    types.PromptArgument(name=each, description=each, required=True)
                    for each in arguments
                ],
            )
            for name, arguments in PROMPTS.items()
        ]
    )


async def get_prompt(
    ctx: Context, params: types.GetPromptRequestParams
) -> types.GetPromptResult | types.InputRequiredResult:
    given = params.arguments or {}
    match params.name:
        case "test_simple_prompt":
            return said(text("This is a simple prompt for testing."))
        case "test_prompt_with_arguments":
            both = f"arg1='{given['arg1']}', arg2='{given['arg2']}'"
            return said(text(f"Prompt with arguments: {both}"))
        case "test_prompt_with_embedded_resource":
            what = embedded(given["resourceUri"], "Embedded resource content for testing.")
            return said(what, text("Please process the embedded resource above."))
        case "test_prompt_with_image":
            return said(image(), text("Please analyze the image above."))
        case "test_input_required_result_prompt":
            asked = rounds.prompt_context(params)
            return said(text(asked)) if isinstance(asked, str) else asked
    raise MCPError(code=types.INVALID_PARAMS, message=f"no such prompt: {params.name}")


async def complete(ctx: Context, params: types.CompleteRequestParams) -> types.CompleteResult:
    return types.CompleteResult(
        completion=types.Completion(values=["one", "two"], total=2, has_more=False)
    )


_listen = ListenHandler(bus)


async def listen(
    ctx: Context, params: types.SubscriptionsListenRequestParams
) -> types.SubscriptionsListenResult:
    listener = object()
    listeners.add(listener)
    try:
        return await _listen(ctx, params)
    finally:
        listeners.remove(listener)
        one_left.unpark_all()


def schema_of(name: str) -> dict[str, Any] | None:
    return TOOLS[name].schema if name in TOOLS else None


server = Server(
    "trio_sse conformance",
    version="1.0",
    get_tool_input_schema=schema_of,
    on_list_tools=list_tools,
    on_call_tool=call_tool,
    on_list_resources=list_resources,
    on_list_resource_templates=list_templates,
    on_read_resource=read_resource,
    on_subscribe_resource=nothing,
    on_unsubscribe_resource=nothing,
    on_subscriptions_listen=listen,
    on_list_prompts=list_prompts,
    on_get_prompt=get_prompt,
    on_completion=complete,
    on_set_logging_level=nothing,
)
# Any key will do: it makes the state that a client brings back one that it cannot make up.
server.middleware.append(
    RequestStateBoundary(
        RequestStateSecurity(keys=[b"the conformance fixture's key, of at least 32 bytes"]),
        default_audience=server.name,
    )
)
