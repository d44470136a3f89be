"""What the pages on MCP say: no row is empty, no name of mcp-go's is left out, tests are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
MCP_GO = DOCS / "coming-from-mcp-go.md"
SDK = DOCS / "coming-from-the-sdk.md"

# What its package `server` offers to who makes a server: functions, and methods of its types.
NAMES = """
WithBaseURL WithStaticBasePath WithBasePath WithDynamicBasePath WithMessageEndpoint
WithAppendQueryToMessageEndpoint WithUseFullURLForMessageEndpoint WithSSEEndpoint WithHTTPServer
WithKeepAliveInterval WithKeepAlive WithSSEProtectedResourceMetadata WithSSECORS
WithSSEDisableLocalhostProtection WithSSEContextFunc WithSessionIDGenerator NewSSEServer
NewTestServer Start Shutdown CloseSessions GetMessageEndpointForClient SendEventToSession
GetUrlPath CompleteSseEndpoint CompleteSsePath CompleteMessageEndpoint CompleteMessagePath
SSEHandler MessageHandler ServeHTTP WithEndpointPath WithStateLess WithSessionIdManager
WithSessionIdManagerResolver WithStateful WithHeartbeatInterval WithEventStore
WithDisableStreaming WithDisableLocalhostProtection WithHTTPContextFunc WithStreamableHTTPServer
WithStreamableHTTPLogger WithTLSCert WithProtectedResourceMetadata WithSessionIdleTTL
WithStreamableHTTPCORS NewStreamableHTTPServer SessionIdManager NewTestStreamableHTTPServer
NewDefaultSessionIdManagerResolver StatelessSessionIdManager StatelessGeneratingSessionIdManager
InsecureStatefulSessionIdManager Handle HTTPRequest HTTPResponseWriter WithCORSAllowedOrigins
WithCORSAllowedMethods WithCORSAllowedHeaders WithCORSExposedHeaders WithCORSAllowCredentials
WithCORSMaxAge NewProtectedResourceMetadataHandler ProtectedResourceMetadataPath
NewInMemoryEventStore NewInProcessSession GenerateInProcessSessionID ServeStdio NewStdioServer
ClientSession SessionWithLogging SessionWithTools SessionWithResources
SessionWithResourceSubscriptions SessionWithResourceSubscriptionsErr SessionWithResourceTemplates
SessionWithClientInfo ClientSessionFromContext WithContext RegisterSession UnregisterSession
SendLogMessageToClient SendLogMessageToSpecificClient SendNotificationToAllClients
SendNotificationToClient SendNotificationToSpecificClient AddSessionTool AddSessionTools
DeleteSessionTools AddSessionResource AddSessionResources DeleteSessionResources
AddSessionResourceTemplate AddSessionResourceTemplates DeleteSessionResourceTemplates
AddBeforeAny AddOnSuccess AddOnError AddOnRegisterSession AddOnUnregisterSession
AddOnRequestInitialization AddBeforeInitialize AddAfterInitialize AddBeforeCallTool
AddAfterCallTool NewMCPServer ServerFromContext WithCacheHints WithMethodCacheHints
WithLegacyServerInitiatedRequests WithPaginationLimit WithResourceCapabilities
WithPromptCompletionProvider WithResourceCompletionProvider WithToolHandlerMiddleware Use
WithResourceHandlerMiddleware WithResourceRecovery WithToolFilter WithPromptHandlerMiddleware
WithPromptFilter WithRecovery WithInputSchemaValidation WithStrictInputSchemaDefault
WithOutputSchemaValidation WithHooks GetHooks WithTaskHooks WithMaxConcurrentTasks
WithPromptCapabilities WithToolCapabilities WithLogging WithElicitation WithRoots
WithTaskCapabilities WithInstructions WithCompletions WithExperimental WithExtensions WithIcons
WithTitle WithDescription WithWebsiteURL AddResources SetResources AddResource DeleteResources
ListResources RemoveResource AddResourceTemplates SetResourceTemplates AddResourceTemplate
AddPrompts AddPrompt SetPrompts DeletePrompts ListPrompts AddTool AddTaskTool AddTools
AddTaskTools SetTools GetTool ListTools DeleteTools AddNotificationHandler RequestElicitation
RequestURLElicitation SendElicitationComplete RequestRoots EnableSampling RequestSampling
NewInputRequestBuilder InputResponse ElicitationResponse SamplingResponse RootsResponse
WithSubscriptionID SubscriptionIDFromContext WithTracer WithPropagator WithMetaPropagator
WithLogger WithSupportedProtocolVersions FilterSupportedVersions SetLogLevel GetLogLevel
UpgradeToSSEWhenReceiveNotification
"""


def rows(page: Path) -> list[list[str]]:
    lines = re.findall(r"^\| (.+) \|$", page.read_text("utf-8"), re.MULTILINE)
    return [line.split(" | ") for line in lines if not line.startswith("---")]


@pytest.mark.parametrize("page", [MCP_GO, SDK], ids=lambda path: path.stem)
def test_every_row_says_something(page: Path) -> None:
    found = rows(page)
    assert len(found) > 15
    for row in found:
        assert len(row) in (2, 3), row
        assert all(re.search(r"\w", cell) for cell in row), row
        if row[1].startswith("none"):
            assert row[1].startswith("none:"), row  # and a reason


def test_every_name_of_mcp_go_has_its_row() -> None:
    said = "\n".join(row[0] for row in rows(MCP_GO))
    named = set(re.findall(r"`([\w…]+)", said))
    assert [name for name in NAMES.split() if name not in named] == []


@pytest.mark.parametrize("page", [MCP_GO, SDK], ids=lambda path: path.stem)
def test_the_tests_that_are_named_are_there(page: Path) -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", page.read_text("utf-8"))
    assert len(named) > 7
    for file, name in named:
        text = (ROOT / "tests" / file).read_text("utf-8")
        assert re.search(rf"def {name}\(", text), f"{file}::{name}"
