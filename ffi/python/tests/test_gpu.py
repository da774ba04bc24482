"""CUDA memory by IPC handle, on the fake libcuda of ffi/cuda/fake: a process of its own, which finds it as libcuda.so.1."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FAKE = Path(__file__).resolve().parents[2] / "cuda/fake/fake_cuda.c"

SCRIPT = '''
import ctypes, sys
sys.path.insert(0, TESTS)
from conftest import Checksum, a_namespace, block, key
import kvferry
from kvferry import Agent, Coordinator, Geometry, Plane

cuda = ctypes.CDLL("libcuda.so.1")
def check(code): assert code == 0, code

context, stream = ctypes.c_void_p(), ctypes.c_void_p()
check(cuda.cuInit(0))
check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 1))
check(cuda.cuCtxPushCurrent_v2(context))
check(cuda.cuStreamCreate(ctypes.byref(stream), 1))
BLOCK, SLOTS, OFFSET = 64 << 10, 4, 4096
host = (ctypes.c_ubyte * (1 << 20))()
check(cuda.cuMemHostRegister_v2(ctypes.byref(host), ctypes.c_size_t(1 << 20), 0))

class Tensor:
    """Two planes of four half blocks, within a larger allocation on GPU 1."""
    def __init__(self):
        base = ctypes.c_uint64()
        check(cuda.cuMemAlloc_v2(ctypes.byref(base), ctypes.c_size_t(1 << 20)))
        self.address = base.value + OFFSET
        self.__cuda_array_interface__ = {
            "typestr": "<u2", "shape": (2, SLOTS, BLOCK // 4), "data": (self.address, False), "version": 3}
    def __dlpack_device__(self): return (2, 1)
    def write(self, at, data):
        ctypes.memmove(host, data, len(data))
        check(cuda.cuMemcpyHtoDAsync_v2(ctypes.c_uint64(self.address + at), host, ctypes.c_size_t(len(data)), stream))
        check(cuda.cuStreamSynchronize(stream))
    def read(self, at, nbytes):
        check(cuda.cuMemcpyDtoHAsync_v2(host, ctypes.c_uint64(self.address + at), ctypes.c_size_t(nbytes), stream))
        check(cuda.cuStreamSynchronize(stream))
        return bytes(host[:nbytes])

half = BLOCK // 2
geometry = Geometry(SLOTS, tuple(Plane(at * SLOTS * half, half, half) for at in range(2)))
namespace = a_namespace(planes=2, plane_bytes=half, checksum=Checksum.ALWAYS)
with Coordinator() as coordinator:
    agents = [Agent(node=node, coordinators=[coordinator.url]) for node in ("a", "b")]
    a, b = (agent.connect() for agent in agents)
    ours, theirs = Tensor(), Tensor()
    region_a, region_b = a.register_cuda(namespace, ours, geometry), b.register_cuda(namespace, theirs, geometry)
    assert region_a.device_uuid.upper() == "GPU-" + "-".join(["B1" * 4, "B1" * 2, "B1" * 2, "B1" * 2, "B1" * 6]), region_a.device_uuid
    region_a.reserve([1])
    for plane in range(2):
        ours.write(plane * SLOTS * half + half, block(5)[plane * half:][:half])
    region_a.seal([1], [key(5)], wait_announced=60)
    result = b.pull(namespace, [key(5)], region=region_b, slots=[2]).result(60)
    assert result.ok, result
    got = b"".join(theirs.read(plane * SLOTS * half + 2 * half, half) for plane in range(2))
    assert got == block(5)
    pin = b.pin(namespace, [key(5)])
    try:
        pin.view(0)
        raise SystemExit("GPU memory has no view")
    except kvferry.InvalidArgumentError as error:
        assert "planes" in str(error)
    pin.release()
    region_a.unregister()
    region_b.unregister()
    try:
        a.register_cuda_ipc(namespace, device_uuid="GPU-nobody", handle=bytes(64), offset=0, nbytes=1 << 20, geometry=geometry)
        raise SystemExit("nobody has that GPU")
    except (kvferry.GpuUnavailableError, kvferry.InvalidArgumentError) as error:
        assert "agent a" in str(error)
    for agent in agents:
        agent.stop()
print("every byte")
'''


def test_cuda_tensors_are_registered_and_pulled_into(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the fake libcuda")
    library = tmp_path / "libcuda.so.1"
    build = [compiler, "-std=gnu11", "-O1", "-shared", "-fPIC", "-pthread", str(FAKE), "-o", str(library)]
    subprocess.run(build, check=True)
    script = SCRIPT.replace("TESTS", repr(str(Path(__file__).parent)))
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout) == (0, "every byte\n"), done.stderr
