//! Registering GPU memory.

use std::fmt::Write;

use kvferry_proto::pb::{self, register_region_request::Source};

use crate::{
    agent::{handle, kvf_agent},
    boundary::{self, guard},
    kvf_error, kvf_status,
    regions::{kvf_region, register},
    words::{flags, geometry, kvf_geometry, kvf_namespace, namespace},
};

/// GPU memory of the caller's, as another process can open it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_cuda_ipc {
    /// Of the GPU: what cuDeviceGetUuid_v2 gives (cudaDeviceProp.uuid).
    pub device_uuid: [u8; 16],
    /// Of the allocation: what cuIpcGetMemHandle (cudaIpcGetMemHandle) gives.
    pub handle: [u8; 64],
    /// Where the region's memory begins, in bytes from the beginning of the allocation.
    pub offset: u64,
    /// Bytes of it. The geometry counts from `offset`.
    pub length: u64,
}

/// As kvf_register_path, for memory on a GPU, from cuMemAlloc or cudaMalloc. Reserve slots before the kernel that overwrites
/// them is launched; seal them after its stream was synchronised. Keep the memory allocated until kvf_unregister
/// has said KVF_OK: only then has the agent closed it. KVF_GPU_UNAVAILABLE: the agent does not have that GPU;
/// KVF_GPU_HANDLE: the handle does not open; the message says what to do. There are no flags: a region of GPU memory
/// always ends with the connection. Within 120 seconds: a GPU may have to be opened.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_register_cuda_ipc(
    agent: *const kvf_agent,
    namespace_of: *const kvf_namespace,
    memory: *const kvf_cuda_ipc,
    geometry_of: *const kvf_geometry,
    flags_given: u32,
    region: *mut kvf_region,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let agent = handle(agent)?;
            let place = boundary::out(region, "the place for the region")?;
            flags(flags_given, 0)?;
            let memory = boundary::reference(memory, "the memory")?;
            let request = pb::RegisterRegionRequest {
                namespace: Some(namespace(namespace_of)?),
                source: Some(Source::CudaIpc(source(memory))),
                geometry: Some(geometry(geometry_of)?),
                keep_on_disconnect: false,
            };
            place.set(register(agent.connection(), request)?);
            Ok(())
        })
    }
}

fn source(memory: &kvf_cuda_ipc) -> pb::CudaIpcSource {
    pb::CudaIpcSource {
        device_uuid: uuid_text(&memory.device_uuid),
        handle: memory.handle.to_vec().into(),
        offset: memory.offset,
        length: memory.length,
    }
}

/// As nvidia-smi writes it.
fn uuid_text(bytes: &[u8; 16]) -> String {
    let mut text = "GPU".to_owned();
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 0 | 4 | 6 | 8 | 10) {
            text.push('-');
        }
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_as_nvidia_smi_does() {
        let mut bytes = [0; 16];
        for (at, byte) in (0..).zip(&mut bytes) {
            *byte = at * 0x11;
        }
        assert_eq!(
            uuid_text(&bytes),
            "GPU-00112233-4455-6677-8899-aabbccddeeff"
        );
    }
}
