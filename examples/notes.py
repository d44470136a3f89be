"""Notes in a folder, for a language model: ``trio-sse mcp examples/notes.py:server``.

Each note is a file, ``NOTES/name.md``. It can be written, searched, read as a resource that
clients subscribe to, and deleted, which the user is asked about first.
"""

import os
import re
from typing import Annotated

import trio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Elicit, Resolve
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel, Field

server = MCPServer(
    "notes",
    version="1.0",
    instructions="The user's notes. Search before you write, so as not to write things twice.",
)
folder = trio.Path(os.environ.get("NOTES", "notes"))

Name = Annotated[str, Field(pattern=r"^[\w-]{1,100}$", description="As in shopping-list")]


def file_of(name: str) -> trio.Path:
    if not re.fullmatch(r"[\w-]{1,100}", name):  # a URI may hold anything
        raise ValueError(f"there is no note {name!r}")
    return folder / f"{name}.md"


async def all_files() -> list[trio.Path]:
    return sorted(await folder.glob("*.md")) if await folder.is_dir() else []


@server.resource("note://{name}", mime_type="text/markdown")
async def note(name: str) -> str:
    """One note."""
    return await file_of(name).read_text("utf-8")


@server.resource("notes://all", mime_type="text/plain")
async def names() -> str:
    """The names of all notes."""
    return "\n".join(path.stem for path in await all_files())


@server.tool()
async def write_note(name: Name, text: str, ctx: Context) -> str:
    """Write a note, or write it anew."""
    path = file_of(name)
    is_new = not await path.exists()
    await folder.mkdir(parents=True, exist_ok=True)
    await path.write_text(text, "utf-8")
    await ctx.notify_resource_updated(f"note://{name}")  # to who has subscribed, and nobody else
    if is_new:
        await ctx.notify_resource_updated("notes://all")
    return f"note://{name}"


@server.tool()
async def search_notes(text: str, ctx: Context) -> list[str]:
    """The names of the notes that contain this text, in whatever case."""
    found: list[str] = []
    paths = await all_files()
    for number, path in enumerate(paths, 1):  # if the client cancels, it ends here
        if text.lower() in (await path.read_text("utf-8")).lower():
            found.append(path.stem)
        await ctx.report_progress(number, len(paths), path.stem)
    return found


class Consent(BaseModel):
    delete: bool = Field(description="Delete it for good")


async def ask(name: str) -> Elicit[Consent]:
    """What the user is asked, in the way that the protocol's revision has for it."""
    if not await file_of(name).exists():
        raise ToolError(f"there is no note {name!r}")
    return Elicit(f"Delete the note {name!r}? It cannot be had back.", Consent)


@server.tool()
async def delete_note(name: Name, consent: Annotated[Consent, Resolve(ask)], ctx: Context) -> str:
    """Delete a note. The user is asked; if they decline, nothing happens."""
    if not consent.delete:
        return "The user wants to keep it."
    await file_of(name).unlink(missing_ok=True)
    await ctx.notify_resource_updated(f"note://{name}")
    await ctx.notify_resource_updated("notes://all")
    return "It is deleted."
