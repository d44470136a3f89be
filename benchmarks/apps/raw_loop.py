"""The limit: one process, one thread, and ``socket.send`` of each event to each socket.

There is no library in it and no concern for anything: what a server does beyond this is
its own cost. It reads requests as if each came in one piece.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from typing import Final

from stamps import Blast

HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    b"3\r\n:\n\n\r\n"
)
ACCEPTED: Final = b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n"

selector = selectors.DefaultSelector()
streams: dict[socket.socket, None] = {}


def publish(data: str) -> None:
    event = f"data: {data}\n\n".encode()
    chunk = b"%x\r\n%b\r\n" % (len(event), event)
    for sock in list(streams):
        try:
            sent = sock.send(chunk)
        except BlockingIOError:
            sent = 0
        except OSError:
            forget(sock)
            continue
        if sent < len(chunk):
            send_rest(sock, chunk[sent:])


def send_rest(sock: socket.socket, rest: bytes) -> None:
    try:
        sock.settimeout(30)
        sock.sendall(rest)
        sock.setblocking(False)
    except OSError:
        forget(sock)


def forget(sock: socket.socket) -> None:
    streams.pop(sock, None)
    selector.unregister(sock)
    sock.close()


def answer(sock: socket.socket) -> None:
    try:
        request = sock.recv(65536)
    except OSError:
        request = b""
    if not request:
        forget(sock)
        return
    head, _, body = request.partition(b"\r\n\r\n")
    method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
    if method == "GET":
        sock.send(HEAD)
        streams[sock] = None
        return
    path, _, query = target.partition("?")
    sock.send(ACCEPTED)
    if path == "/blast":
        blast = Blast(query)
        for number in blast.numbers():
            time.sleep(max(0.0, blast.early_by(number)))
            publish(blast.data(number))
    else:
        publish(json.loads(body)["data"])


def main() -> None:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=2048)
    listener.setblocking(False)
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                try:
                    while True:
                        sock, _ = listener.accept()
                        sock.setblocking(False)
                        selector.register(sock, selectors.EVENT_READ)
                except BlockingIOError:
                    continue
            else:
                assert isinstance(key.fileobj, socket.socket)
                answer(key.fileobj)


if __name__ == "__main__":
    main()
