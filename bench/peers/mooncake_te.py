"""Mooncake's transfer engine over TCP: metadata from peer to peer, one synchronous read per batch."""

import os

os.environ.setdefault("MC_LOG_LEVEL", "WARNING")
os.environ.setdefault("GLOG_minloglevel", "1")
os.environ.setdefault("MC_TCP_BIND_ADDRESS", "127.0.0.1")

from contender import LOOPBACK, arguments, measure, serve  # noqa: E402
from mooncake.engine import TransferEngine  # noqa: E402


def engine(pool):
    made = TransferEngine()
    if made.initialize(LOOPBACK, "P2PHANDSHAKE", "tcp", "") != 0:
        raise SystemExit("the transfer engine does not start")
    if made.register_memory(pool.address, pool.length) != 0:
        raise SystemExit("the transfer engine does not register memory")
    return made


def own(pool, _args):
    made = engine(pool)
    session = f"{LOOPBACK}:{made.get_rpc_port()}"
    return {"session": session, "address": pool.address}, b"", made


def connect(pool, known, _blob, places, args):
    made, block = engine(pool), args.block_bytes
    here = [pool.address + n * block for n in range(args.batch)]
    there = [known["address"] + place * block for place in places]
    lengths = [block] * args.batch

    def batch():
        said = made.batch_transfer_sync_read(known["session"], here, there, lengths)
        if said != 0:
            raise RuntimeError(f"batch_transfer_sync_read says {said}")

    return batch


if arguments().owner:
    serve(own)
else:
    measure(__file__, "Mooncake transfer engine, tcp", connect)
