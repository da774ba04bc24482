//! The driver API's types and functions, as far as they are used.
//!
//! Written from the CUDA Driver API's reference (<https://docs.nvidia.com/cuda/cuda-driver-api/>). Names are those of the
//! library's symbols: where `cuda.h` maps a function to a later version, that version (`cuMemAlloc` is
//! `cuMemAlloc_v2`). Enumerations are 32-bit integers, `CUdeviceptr` is as wide as a pointer.

#![allow(non_camel_case_types, non_snake_case)]

use std::ffi::{OsStr, c_char, c_int, c_uint, c_ulonglong, c_void};

use crate::LoadError;

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("the bindings describe libcuda on 64-bit Linux");

pub(crate) type CUresult = c_int;
pub(crate) type CUdevice = c_int;
pub(crate) type CUdeviceptr = c_ulonglong;
pub(crate) type CUcontext = *mut c_void;
pub(crate) type CUstream = *mut c_void;
pub(crate) type CUevent = *mut c_void;

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUuuid {
    pub(crate) bytes: [u8; 16],
}

/// `CU_IPC_HANDLE_SIZE` bytes; passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUipcMemHandle {
    pub(crate) reserved: [u8; 64],
}

/// `CUDA_MEMCPY2D_v2`: the one with `size_t` fields.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct CUDA_MEMCPY2D {
    pub(crate) srcXInBytes: usize,
    pub(crate) srcY: usize,
    pub(crate) srcMemoryType: c_uint,
    pub(crate) srcHost: *const c_void,
    pub(crate) srcDevice: CUdeviceptr,
    pub(crate) srcArray: *mut c_void,
    pub(crate) srcPitch: usize,
    pub(crate) dstXInBytes: usize,
    pub(crate) dstY: usize,
    pub(crate) dstMemoryType: c_uint,
    pub(crate) dstHost: *mut c_void,
    pub(crate) dstDevice: CUdeviceptr,
    pub(crate) dstArray: *mut c_void,
    pub(crate) dstPitch: usize,
    pub(crate) WidthInBytes: usize,
    pub(crate) Height: usize,
}

pub(crate) const CU_MEMORYTYPE_HOST: c_uint = 1;
pub(crate) const CU_MEMORYTYPE_DEVICE: c_uint = 2;

pub(crate) const CU_DEVICE_ATTRIBUTE_MAX_PITCH: c_int = 11;
pub(crate) const CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_SUPPORTED: c_int = 116;
pub(crate) const CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS: c_int = 117;
pub(crate) const CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING: c_int = 118;
pub(crate) const CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED: c_int = 124;

/// The device sees RDMA writes to its own memory in order.
pub(crate) const CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER: u64 = 100;
pub(crate) const CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX: c_int = 0;
pub(crate) const CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_ALL_DEVICES: c_int = 200;
pub(crate) type Flush = unsafe extern "C" fn(c_int, c_int) -> CUresult;

pub(crate) const CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: c_int = 9;

/// The only flag `cuIpcOpenMemHandle` knows, and one that it requires.
pub(crate) const CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS: c_uint = 1;
/// The stream does not wait for the legacy default stream, which anybody in the process may use.
pub(crate) const CU_STREAM_NON_BLOCKING: c_uint = 1;
/// Events cost less without a time.
pub(crate) const CU_EVENT_DISABLE_TIMING: c_uint = 2;
/// The memory counts as pinned in every context of the process.
pub(crate) const CU_MEMHOSTREGISTER_PORTABLE: c_uint = 1;
pub(crate) const CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD: c_int = 1;
/// The mapping goes through PCIe, where network cards reach it, and not through the link to the CPU (since CUDA 12.8).
pub(crate) const CU_MEM_RANGE_FLAG_DMA_BUF_MAPPING_TYPE_PCIE: c_ulonglong = 1;

macro_rules! driver {
    (
        required { $($name:ident($($ty:ty),*);)* }
        optional { $($maybe:ident($($maybe_ty:ty),*);)* }
    ) => {
        /// The functions of one loaded libcuda.
        pub(crate) struct Driver {
            $(pub(crate) $name: unsafe extern "C" fn($($ty),*) -> CUresult,)*
            $(pub(crate) $maybe: Option<unsafe extern "C" fn($($maybe_ty),*) -> CUresult>,)*
            /// The functions' code.
            _library: libloading::Library,
        }

        impl Driver {
            /// Opens a library and looks up its functions.
            pub(crate) fn open(path: &OsStr) -> Result<Self, LoadError> {
                let name = || path.to_string_lossy().into_owned();
                // SAFETY: libcuda's initialisers are safe to run in any program; whoever can put another
                // library in its place can replace this program too.
                let library = unsafe { libloading::Library::new(path) }.map_err(|error| {
                    LoadError::Library { name: name(), said: said(&error) }
                })?;
                $(
                    // SAFETY: the type is the one the reference gives for this function.
                    let found = unsafe {
                        library.get::<unsafe extern "C" fn($($ty),*) -> CUresult>(
                            concat!(stringify!($name), "\0").as_bytes(),
                        )
                    };
                    let $name = *found.map_err(|error| LoadError::Symbol {
                        name: name(),
                        symbol: stringify!($name),
                        said: said(&error),
                    })?;
                )*
                $(
                    // SAFETY: as above.
                    let found = unsafe {
                        library.get::<unsafe extern "C" fn($($maybe_ty),*) -> CUresult>(
                            concat!(stringify!($maybe), "\0").as_bytes(),
                        )
                    };
                    let $maybe = found.ok().map(|symbol| *symbol);
                )*
                Ok(Self { $($name,)* $($maybe,)* _library: library })
            }
        }
    };
}

driver! {
    required {
        cuInit(c_uint);
        cuDriverGetVersion(*mut c_int);
        cuGetErrorName(CUresult, *mut *const c_char);
        cuGetErrorString(CUresult, *mut *const c_char);
        cuDeviceGetCount(*mut c_int);
        cuDeviceGet(*mut CUdevice, c_int);
        cuDeviceGetName(*mut c_char, c_int, CUdevice);
        cuDeviceGetUuid(*mut CUuuid, CUdevice);
        cuDeviceGetAttribute(*mut c_int, c_int, CUdevice);
        cuDeviceGetPCIBusId(*mut c_char, c_int, CUdevice);
        cuDeviceTotalMem_v2(*mut usize, CUdevice);
        cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice);
        cuDevicePrimaryCtxRelease_v2(CUdevice);
        cuCtxPushCurrent_v2(CUcontext);
        cuCtxPopCurrent_v2(*mut CUcontext);
        cuMemAlloc_v2(*mut CUdeviceptr, usize);
        cuMemFree_v2(CUdeviceptr);
        cuMemGetAddressRange_v2(*mut CUdeviceptr, *mut usize, CUdeviceptr);
        cuPointerGetAttribute(*mut c_void, c_int, CUdeviceptr);
        cuIpcGetMemHandle(*mut CUipcMemHandle, CUdeviceptr);
        cuIpcOpenMemHandle_v2(*mut CUdeviceptr, CUipcMemHandle, c_uint);
        cuIpcCloseMemHandle(CUdeviceptr);
        cuMemHostRegister_v2(*mut c_void, usize, c_uint);
        cuMemHostUnregister(*mut c_void);
        cuStreamCreate(*mut CUstream, c_uint);
        cuStreamDestroy_v2(CUstream);
        cuEventCreate(*mut CUevent, c_uint);
        cuEventRecord(CUevent, CUstream);
        cuEventQuery(CUevent);
        cuEventDestroy_v2(CUevent);
        cuMemcpyDtoHAsync_v2(*mut c_void, CUdeviceptr, usize, CUstream);
        cuMemcpyHtoDAsync_v2(CUdeviceptr, *const c_void, usize, CUstream);
        cuMemcpy2DAsync_v2(*const CUDA_MEMCPY2D, CUstream);
    }
    optional {
        // Since CUDA 11.4. Tells the instance's identity where a GPU is partitioned (MIG).
        cuDeviceGetUuid_v2(*mut CUuuid, CUdevice);
        // Since CUDA 11.3.
        cuFlushGPUDirectRDMAWrites(c_int, c_int);
        // Since CUDA 11.7.
        cuMemGetHandleForAddressRange(*mut c_void, CUdeviceptr, usize, c_int, c_ulonglong);
    }
}

/// The loader's words without its own prefix, in one line.
fn said(error: &libloading::Error) -> String {
    let text = match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => error.to_string(),
    };
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{align_of, offset_of, size_of};

    #[test]
    fn structures_lie_as_the_library_expects() {
        assert_eq!(size_of::<CUuuid>(), 16);
        assert_eq!(
            (size_of::<CUipcMemHandle>(), align_of::<CUipcMemHandle>()),
            (64, 1)
        );
        assert_eq!(size_of::<CUDA_MEMCPY2D>(), 128);
        assert_eq!(offset_of!(CUDA_MEMCPY2D, srcHost), 24);
        assert_eq!(offset_of!(CUDA_MEMCPY2D, dstXInBytes), 56);
        assert_eq!(offset_of!(CUDA_MEMCPY2D, dstHost), 80);
        assert_eq!(offset_of!(CUDA_MEMCPY2D, Height), 120);
    }
}
