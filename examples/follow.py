import trio

import trio_sse


async def main(url: str = "http://127.0.0.1:8000/events") -> None:
    async with trio_sse.connect(url) as source:
        async for event in source:
            print(event.id, event.type, event.data)


if __name__ == "__main__":
    trio.run(main)
