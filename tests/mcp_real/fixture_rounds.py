"""The fixture's tools that need input first, in the way of 2026-07-28.

There a server cannot ask its client while it works on a request. It answers with what it
needs to know, and the client sends the request again with the answers.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

import mcp_types as types
from mcp.server import ServerRequestContext

STATELESS: Final = "2026-07-28"

Answer: TypeAlias = "str | types.InputRequiredResult"
Params: TypeAlias = types.CallToolRequestParams
Context: TypeAlias = ServerRequestContext[dict[str, Any]]
Requests: TypeAlias = "dict[str, types.InputRequest]"


def form(message: str, member: str, kind: str = "string") -> types.ElicitRequest:
    """Ask the user for an object with one member."""
    schema = {"type": "object", "properties": {member: {"type": kind}}, "required": [member]}
    return types.ElicitRequest(
        params=types.ElicitRequestFormParams(message=message, requested_schema=schema)
    )


def sample(prompt: str) -> types.CreateMessageRequest:
    content = types.TextContent(type="text", text=prompt)
    message = types.SamplingMessage(role="user", content=content)
    return types.CreateMessageRequest(
        params=types.CreateMessageRequestParams(messages=[message], max_tokens=100)
    )


def needed(requests: Requests, state: str | None = None) -> types.InputRequiredResult:
    return types.InputRequiredResult(input_requests=requests, request_state=state)


def entered(responses: Mapping[str, Any] | None, key: str, member: str) -> Any:
    """What the user entered; None where that was not asked yet or not answered."""
    answer = (responses or {}).get(key)
    if isinstance(answer, types.ElicitResult) and answer.content:
        return answer.content.get(member)
    return None


async def elicitation(ctx: Context, params: Params) -> Answer:
    name = entered(params.input_responses, "user_name", "name")
    if name is None:
        return needed({"user_name": form("What is your name?", "name")})
    return f"Hello, {name}!"


async def sampling(ctx: Context, params: Params) -> Answer:
    answer = (params.input_responses or {}).get("capital_question")
    if not isinstance(answer, types.CreateMessageResult):
        return needed({"capital_question": sample("What is the capital of France?")})
    content = answer.content
    return f"Model said: {content.text if content.type == 'text' else '?'}"


async def list_roots(ctx: Context, params: Params) -> Answer:
    answer = (params.input_responses or {}).get("client_roots")
    if not isinstance(answer, types.ListRootsResult):
        return needed({"client_roots": types.ListRootsRequest()})
    return f"Client exposed {len(answer.roots)} root(s)."


async def request_state(ctx: Context, params: Params) -> Answer:
    if "confirm" in (params.input_responses or {}) and params.request_state == "round 1":
        return "state-ok: confirmation received"
    return needed({"confirm": form("Please confirm", "ok", "boolean")}, "round 1")


async def multiple_inputs(ctx: Context, params: Params) -> Answer:
    requests: Requests = {
        "user_name": form("What is your name?", "name"),
        "greeting": sample("Generate a greeting"),
        "client_roots": types.ListRootsRequest(),
    }
    if requests.keys() <= (params.input_responses or {}).keys():
        return "All inputs received."
    return needed(requests, "all")


async def multi_round(ctx: Context, params: Params) -> Answer:
    state = json.loads(params.request_state or "{}")
    if "name" in state:
        colour = entered(params.input_responses, "step2", "color")
        if colour is not None:
            return f"{state['name']} likes {colour}."
    name = state.get("name") or entered(params.input_responses, "step1", "name")
    if name is None:
        return needed({"step1": form("What is your name?", "name")}, json.dumps({"round": 1}))
    asked = form("What is your favourite colour?", "color")
    return needed({"step2": asked}, json.dumps({"round": 2, "name": name}))


async def tampered_state(ctx: Context, params: Params) -> Answer:
    if params.request_state is None:
        return needed({"confirm": form("Please confirm", "ok", "boolean")}, "round 1")
    return f"state-ok: {params.request_state}"


async def capabilities(ctx: Context, params: Params) -> Answer:
    declared = ctx.session.client_capabilities
    requests: Requests = {}
    if declared is not None and declared.sampling is not None:
        requests["sample"] = sample("Say hello")
    if declared is not None and declared.elicitation is not None:
        requests["ask"] = form("What is your name?", "name")
    return needed(requests, "what was declared")


async def streaming_elicitation(ctx: Context, params: Params) -> Answer:
    await ctx.session.report_progress(0, 1, "about to ask")
    return await elicitation(ctx, params)


TOOLS: Final[dict[str, Callable[[Context, Params], Awaitable[Answer]]]] = {
    "test_input_required_result_elicitation": elicitation,
    "test_input_required_result_sampling": sampling,
    "test_input_required_result_list_roots": list_roots,
    "test_input_required_result_request_state": request_state,
    "test_input_required_result_multiple_inputs": multiple_inputs,
    "test_input_required_result_multi_round": multi_round,
    "test_input_required_result_tampered_state": tampered_state,
    "test_input_required_result_capabilities": capabilities,
    "test_streaming_elicitation": streaming_elicitation,
}


def prompt_context(params: types.GetPromptRequestParams) -> Answer:
    """The text of the prompt that needs input first."""
    context = entered(params.input_responses, "user_context", "context")
    if context is None:
        return needed({"user_context": form("What context should be used?", "context")})
    return f"Use the following context: {context}"
