"""What all contenders share. One process owns a pool, another reads all of it in batches; both are started here, talk
over a socket on loopback, and end with each other. Prints one JSON line."""

import argparse
import ctypes
import json
import mmap
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import time
import zlib

LOOPBACK = "127.0.0.1"
# Longer than any start takes; a peer that hangs must not hang the run.
BOUND_S = 120
# Batches before the clock starts: connections and pages are there then.
WARM_UP = 3


class Pool:
    """Page-aligned memory that its owner may register."""

    def __init__(self, length):
        self.length = length
        self.map = mmap.mmap(-1, length)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.bytes = memoryview(self.map)

    def fill(self, seed):
        """Different bytes everywhere, so that a block in the wrong place is a wrong block."""
        source, step = random.Random(seed), 1 << 20
        for at in range(0, self.length, step):
            end = min(at + step, self.length)
            self.bytes[at:end] = source.randbytes(end - at)

    def clear(self):
        ctypes.memset(self.address, 0, self.length)

    def sums(self, block):
        return [zlib.crc32(self.bytes[at : at + block]) for at in range(0, self.length, block)]


class Wire:
    """Whole messages over a socket."""

    def __init__(self, stream):
        self.stream = stream
        stream.settimeout(BOUND_S)

    def put(self, message):
        raw = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.stream.sendall(struct.pack("<I", len(raw)) + raw)

    def take_raw(self):
        (length,) = struct.unpack("<I", exactly(self.stream, 4))
        return exactly(self.stream, length)

    def take(self):
        return json.loads(self.take_raw())


def exactly(stream, length):
    out = bytearray()
    while len(out) < length:
        piece = stream.recv(length - len(out))
        if not piece:
            raise EOFError("the other process is gone")
        out += piece
    return bytes(out)


def processor_seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def permuted(blocks):
    """As kvferry's own benchmark: neighbours are not neighbours there."""
    return [block * 1_000_003 % blocks for block in range(blocks)]


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--block-bytes", type=int, default=1 << 20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--tuned", action="store_true", help="with what serves the peer better here, where it is not the default")
    parser.add_argument("--owner", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def serve(make):
    """The owner: `make(pool)` registers it and says what a reader must know, as JSON and as bytes."""
    args = arguments()
    wire = Wire(socket.create_connection((LOOPBACK, args.owner)))
    pool = Pool(args.block_bytes * args.batch)
    pool.fill(args.block_bytes)
    known, blob, keep = make(pool, args)
    wire.put({"known": known, "sums": pool.sums(args.block_bytes)})
    wire.put(blob)
    try:
        while wire.take() == "processor":
            wire.put(processor_seconds())
        del keep
    finally:
        # Some peers do not end when they are told to, and a reader may have gone without a word.
        os._exit(0)


def measure(script, name, connect):
    """The reader: `connect(pool, known, blob, places, args)` gives a function that reads one batch. It runs until the
    time is over; afterwards a batch into cleared memory is compared with the owner's sums."""
    args = arguments()
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen(1)
        listener.settimeout(BOUND_S)
        port = listener.getsockname()[1]
        owner = subprocess.Popen([sys.executable, script, *sys.argv[1:], "--owner", str(port)])
        try:
            wire = Wire(listener.accept()[0])
            said, blob = wire.take(), wire.take_raw()
            pool = Pool(args.block_bytes * args.batch)
            pool.clear()
            places = permuted(args.batch)
            batch = connect(pool, said["known"], blob, places, args)
            for _ in range(WARM_UP):
                batch()
            wire.put("processor")
            owner_before, before = wire.take(), processor_seconds()
            times, began = [], time.perf_counter()
            while time.perf_counter() - began < args.seconds:
                start = time.perf_counter()
                batch()
                times.append(time.perf_counter() - start)
            took, used = time.perf_counter() - began, processor_seconds() - before
            wire.put("processor")
            used += wire.take() - owner_before
            pool.clear()
            batch()
            found = pool.sums(args.block_bytes)
            right = all(found[n] == said["sums"][places[n]] for n in range(args.batch))
            wire.put("end")
            times.sort()
            gigabytes = len(times) * args.block_bytes * args.batch / 1e9
            print(
                json.dumps(
                    {
                        "name": name,
                        "block_bytes": args.block_bytes,
                        "batch": args.batch,
                        "gb_per_s": gigabytes / took,
                        "batch_p50_us": times[len(times) // 2] * 1e6,
                        "batch_p99_us": times[int(len(times) * 0.99)] * 1e6,
                        "core_seconds_per_gb": used / gigabytes,
                        "right": right,
                    }
                ),
                flush=True,
            )
        finally:
            try:
                owner.wait(10)
            except subprocess.TimeoutExpired:
                owner.kill()
                owner.wait()
    os._exit(0 if right else 1)
