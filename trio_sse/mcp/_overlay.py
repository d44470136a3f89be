"""What one session offers beside its server: tools, resources, templates, prompts of its own.

And its log level, and the resources it has subscribed to. The kernel is given a
`SessionServer` in place of the server; what it does not answer itself the server does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, cast, final

from mcp.server.lowlevel import Server
from mcp.server.lowlevel.server import HandlerEntry
from mcp.server.models import InitializationOptions
from mcp.shared.exceptions import MCPError
from mcp.shared.uri_template import UriTemplate
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    EmptyResult,
    GetPromptRequestParams,
    LoggingCapability,
    LoggingLevel,
    PaginatedRequestParams,
    Prompt,
    PromptsCapability,
    ReadResourceRequestParams,
    RequestParams,
    Resource,
    ResourcesCapability,
    ResourceTemplate,
    SetLevelRequestParams,
    SubscribeRequestParams,
    Tool,
    ToolsCapability,
    UnsubscribeRequestParams,
)
from pydantic import BaseModel

if TYPE_CHECKING:
    from ._session import Fate

LEVELS: Final[tuple[LoggingLevel, ...]] = (
    "debug",
    "info",
    "notice",
    "warning",
    "error",
    "critical",
    "alert",
    "emergency",
)
"""From the least severe to the most."""

_MAX_SUBSCRIPTIONS: Final = 1024
_MAX_URI: Final = 4096
"""Characters of a URI that is subscribed to: it is kept as long as the session."""

Handler = Callable[[Any, Any], Awaitable[Any]]
"""As the SDK's request handlers: ``async (ctx, params) -> result``."""


@final
@dataclass(frozen=True, slots=True)
class _Kind:
    """What the protocol calls the parts of one kind of offer."""

    list_method: str
    list_key: str  # in the result, on the wire
    list_field: str  # in the SDK's model of it
    name: str  # of the field that tells one from another
    use_method: str
    use_params: type[RequestParams]
    use_name: str  # of the parameter that says which
    changed: str


_TOOLS: Final = _Kind(
    "tools/list",
    "tools",
    "tools",
    "name",
    "tools/call",
    CallToolRequestParams,
    "name",
    "notifications/tools/list_changed",
)
_RESOURCES: Final = _Kind(
    "resources/list",
    "resources",
    "resources",
    "uri",
    "resources/read",
    ReadResourceRequestParams,
    "uri",
    "notifications/resources/list_changed",
)
_TEMPLATES: Final = _Kind(
    "resources/templates/list",
    "resourceTemplates",
    "resource_templates",
    "uri_template",
    "resources/read",
    ReadResourceRequestParams,
    "uri",
    "notifications/resources/list_changed",
)
_PROMPTS: Final = _Kind(
    "prompts/list",
    "prompts",
    "prompts",
    "name",
    "prompts/get",
    GetPromptRequestParams,
    "name",
    "notifications/prompts/list_changed",
)
_KINDS: Final = (_TOOLS, _RESOURCES, _TEMPLATES, _PROMPTS)


class _Notify(Protocol):
    def __call__(self, method: str, /) -> Fate: ...


@final
class Offers:
    """What one session offers of its own, as `McpSession.offers`.

    What has the name of something the server offers takes its place, in this session. The
    client is told of each change, once it is initialised.
    """

    def __init__(self, notify: _Notify) -> None:
        self._notify = notify
        # For each kind, by name: what is listed, and what handles it.
        self._own: dict[_Kind, dict[str, tuple[BaseModel, Handler]]] = {}

    def add_tool(self, tool: Tool, handler: Handler) -> None:
        """Offer ``tool``; ``await handler(ctx, CallToolRequestParams)`` calls it."""
        self._add(_TOOLS, tool, handler)

    def add_resource(self, resource: Resource, handler: Handler) -> None:
        """Offer ``resource``; ``await handler(ctx, ReadResourceRequestParams)`` reads it."""
        self._add(_RESOURCES, resource, handler)

    def add_template(self, template: ResourceTemplate, handler: Handler) -> None:
        """Offer what ``template`` matches, as `add_resource`.

        Raises:
            ValueError: it is no URI template.
        """
        UriTemplate.parse(template.uri_template)
        self._add(_TEMPLATES, template, handler)

    def add_prompt(self, prompt: Prompt, handler: Handler) -> None:
        """Offer ``prompt``; ``await handler(ctx, GetPromptRequestParams)`` gets it."""
        self._add(_PROMPTS, prompt, handler)

    def remove_tool(self, name: str) -> None:
        """Offer it no more.

        Raises:
            KeyError: the session has none of its own with that name; so for the others.
        """
        self._remove(_TOOLS, name)

    def remove_resource(self, uri: str) -> None:
        self._remove(_RESOURCES, uri)

    def remove_template(self, uri_template: str) -> None:
        self._remove(_TEMPLATES, uri_template)

    def remove_prompt(self, name: str) -> None:
        self._remove(_PROMPTS, name)

    def _add(self, kind: _Kind, item: BaseModel, handler: Handler) -> None:
        self._own.setdefault(kind, {})[str(getattr(item, kind.name))] = (item, handler)
        self._notify(kind.changed)

    def _remove(self, kind: _Kind, name: str) -> None:
        del self._own[kind][name]
        self._notify(kind.changed)

    def has_any(self, *kinds: _Kind) -> bool:
        return any(self._own.get(kind) for kind in kinds)

    def entry(
        self, method: str, server_entry: HandlerEntry[Any] | None
    ) -> HandlerEntry[Any] | None:
        """What handles ``method``, given what does for the server; ``None`` if nothing."""
        for kind in _KINDS:
            if self._own.get(kind):
                if method == kind.list_method:
                    handler = _lists(kind, self._own[kind], server_entry)
                    server_entry = HandlerEntry(PaginatedRequestParams, handler)
                elif method == kind.use_method:
                    handler = _uses(kind, self._own[kind], server_entry)
                    server_entry = HandlerEntry(kind.use_params, handler)
        return server_entry


def _lists(
    kind: _Kind,
    own: Mapping[str, tuple[BaseModel, Handler]],
    server_entry: HandlerEntry[Any] | None,
) -> Handler:
    async def handle(ctx: Any, params: PaginatedRequestParams) -> Any:
        listed: dict[str, Any] = {kind.list_key: []}
        if server_entry is not None:
            result = await server_entry.handler(ctx, params)
            listed = _as_dict(result)
        wire_name = "uriTemplate" if kind is _TEMPLATES else kind.name
        others = [item for item in listed[kind.list_key] if item[wire_name] not in own]
        first = [] if params.cursor else [_as_dict(item) for item, _ in own.values()]
        return {**listed, kind.list_key: [*first, *others]}

    return handle


def _uses(
    kind: _Kind,
    own: Mapping[str, tuple[BaseModel, Handler]],
    server_entry: HandlerEntry[Any] | None,
) -> Handler:
    async def handle(ctx: Any, params: Any) -> Any:
        name: str = str(getattr(params, kind.use_name))
        for owned, (_, handler) in own.items():
            if owned == name or (
                kind is _TEMPLATES and UriTemplate.parse(owned).match(name) is not None
            ):
                return await handler(ctx, params)
        if server_entry is None:
            raise ValueError(f"there is no {name!r} here")
        return await server_entry.handler(ctx, params)

    return handle


def _as_dict(model: Any) -> dict[str, Any]:
    if isinstance(model, BaseModel):
        return model.model_dump(by_alias=True, mode="json", exclude_none=True)
    return cast("dict[str, Any]", model)


@final
class SessionServer:
    """A server as one session has it: what the kernel looks up, and the rest as it is."""

    def __init__(
        self,
        server: Server[Any],
        offers: Offers,
        subscriptions: set[str],
        set_level: Callable[[LoggingLevel], None],
    ) -> None:
        self._server = server
        self._offers = offers
        self._subscriptions = subscriptions
        self._set_level = set_level

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)

    def get_request_handler(self, method: str) -> HandlerEntry[Any] | None:
        entry = self._server.get_request_handler(method)
        if method == "logging/setLevel":
            return HandlerEntry(SetLevelRequestParams, self._sets_level(entry))
        if method == "resources/subscribe" and self._has_resources:
            return HandlerEntry(SubscribeRequestParams, self._subscribes(entry))
        if method == "resources/unsubscribe" and self._has_resources:
            return HandlerEntry(UnsubscribeRequestParams, self._unsubscribes(entry))
        return self._offers.entry(method, entry)

    def _sets_level(self, server_entry: HandlerEntry[Any] | None) -> Handler:
        async def handle(ctx: Any, params: SetLevelRequestParams) -> Any:
            self._set_level(params.level)
            return (
                EmptyResult() if server_entry is None else await server_entry.handler(ctx, params)
            )

        return handle

    @property
    def _has_resources(self) -> bool:
        return self._offers.has_any(_RESOURCES, _TEMPLATES) or (
            self._server.get_request_handler("resources/read") is not None
        )

    def _subscribes(self, server_entry: HandlerEntry[Any] | None) -> Handler:
        async def handle(ctx: Any, params: SubscribeRequestParams) -> Any:
            if len(self._subscriptions) >= _MAX_SUBSCRIPTIONS:
                raise MCPError(INVALID_PARAMS, f"more than {_MAX_SUBSCRIPTIONS} subscriptions")
            if len(str(params.uri)) > _MAX_URI:
                raise MCPError(INVALID_PARAMS, f"a URI of more than {_MAX_URI} characters")
            result = (
                EmptyResult() if server_entry is None else await server_entry.handler(ctx, params)
            )
            self._subscriptions.add(str(params.uri))
            return result

        return handle

    def _unsubscribes(self, server_entry: HandlerEntry[Any] | None) -> Handler:
        async def handle(ctx: Any, params: UnsubscribeRequestParams) -> Any:
            self._subscriptions.discard(str(params.uri))
            return (
                EmptyResult() if server_entry is None else await server_entry.handler(ctx, params)
            )

        return handle

    def create_initialization_options(self) -> InitializationOptions:
        """The server's, with what the session adds: log levels, subscriptions, news of changes."""
        options = self._server.create_initialization_options()
        has, offers = options.capabilities, self._offers
        more: dict[str, Any] = {"logging": LoggingCapability()}
        if has.tools or offers.has_any(_TOOLS):
            more["tools"] = ToolsCapability(list_changed=True)
        if has.prompts or offers.has_any(_PROMPTS):
            more["prompts"] = PromptsCapability(list_changed=True)
        if has.resources or offers.has_any(_RESOURCES, _TEMPLATES):
            more["resources"] = ResourcesCapability(subscribe=True, list_changed=True)
        return options.model_copy(update={"capabilities": has.model_copy(update=more)})
