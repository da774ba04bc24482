"""NIXL with its UCX backend over TCP: one prepared READ, posted again for every batch and polled until it is done.

Tuned: UCX's TCP segments of 64 KiB instead of 8, and a reader without a progress thread, whose polls move the bytes. A thread that
moves them beside one that polls takes a processor away from it, and from the owner where there are two."""

import os
import time

os.environ.setdefault("UCX_TLS", "tcp")
os.environ.setdefault("UCX_NET_DEVICES", "lo")
os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")

from contender import BOUND_S, arguments, measure, serve  # noqa: E402

TUNED = arguments().tuned
if TUNED:
    os.environ.setdefault("UCX_TCP_TX_SEG_SIZE", "64k")
    os.environ.setdefault("UCX_TCP_RX_SEG_SIZE", "64k")

from nixl._api import nixl_agent, nixl_agent_config  # noqa: E402

# Between two polls where a progress thread moves the bytes; without one every poll counts.
POLL_S = 0 if TUNED else 50e-6


def agent(name, pool):
    made = nixl_agent(name, nixl_agent_config(enable_prog_thread=name == "owner" or not TUNED, backends=["UCX"]))
    made.register_memory([(pool.address, pool.length, 0, "")], "DRAM")
    return made


def own(pool, _args):
    made = agent("owner", pool)
    return {"address": pool.address}, made.get_agent_metadata(), made


def connect(pool, known, blob, places, args):
    made, block = agent("reader", pool), args.block_bytes
    peer = made.add_remote_agent(blob)
    peer = peer.decode() if isinstance(peer, bytes) else peer
    here = [(pool.address + n * block, block, 0) for n in range(args.batch)]
    there = [(known["address"] + place * block, block, 0) for place in places]
    transfer = made.initialize_xfer(
        "READ", made.get_xfer_descs(here, "DRAM"), made.get_xfer_descs(there, "DRAM"), peer
    )

    def batch():
        state, until = made.transfer(transfer), time.perf_counter() + BOUND_S
        while state == "PROC":
            if POLL_S:
                time.sleep(POLL_S)
            state = made.check_xfer_state(transfer)
            if time.perf_counter() > until:
                raise RuntimeError("the read does not end")
        if state != "DONE":
            raise RuntimeError(f"the read ended as {state}")

    return batch


if arguments().owner:
    serve(own)
else:
    measure(__file__, f"NIXL, UCX over {os.environ['UCX_TLS']}" + ", tuned" * TUNED, connect)
