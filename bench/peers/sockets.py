"""Plain sockets: `(offset, length)` goes out for every block of a batch, in one write; the blocks come back."""

import socket
import struct
import threading

from contender import LOOPBACK, arguments, exactly, measure, serve


def own(pool, _args):
    listener = socket.create_server((LOOPBACK, 0))

    def answer():
        stream, _ = listener.accept()
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while True:
                offset, length = struct.unpack("<QQ", exactly(stream, 16))
                stream.sendall(pool.bytes[offset : offset + length])
        except (EOFError, OSError):
            return

    threading.Thread(target=answer, daemon=True).start()
    return {"port": listener.getsockname()[1]}, b"", listener


def connect(pool, known, _blob, places, args):
    stream = socket.create_connection((LOOPBACK, known["port"]))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    block = args.block_bytes
    requests = b"".join(struct.pack("<QQ", place * block, block) for place in places)

    def batch():
        stream.sendall(requests)
        at = 0
        while at < pool.length:
            end = at - at % block + block
            got = stream.recv_into(pool.bytes[at:end])
            if not got:
                raise EOFError
            at += got

    return batch


if arguments().owner:
    serve(own)
else:
    measure(__file__, "plain sockets (Python)", connect)
