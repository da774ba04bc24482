//! A device: what it is and what it can do.

use std::{
    ffi::{CStr, c_char, c_int},
    fs,
    path::Path,
    sync::Arc,
};

use crate::{
    CallError, Context, ContextError, DeviceUuid, Library,
    sys::{
        CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED,
        CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS,
        CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_SUPPORTED,
        CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING, CU_DEVICE_ATTRIBUTE_MAX_PITCH,
        CUdevice, CUuuid,
    },
};

/// Room for a device's name, and more than the reference's examples take.
const NAME_BYTES: usize = 256;
/// Room for `domain:bus:device.function`; the reference asks for 13 at least.
const PCI_BYTES: usize = 32;

/// A GPU, or a part of one, that this process may use.
#[derive(Debug, Clone)]
pub struct Device {
    pub(crate) library: Library,
    pub(crate) raw: CUdevice,
    ordinal: u32,
    uuid: DeviceUuid,
    name: String,
    pci_address: String,
    numa_node: Option<u32>,
    memory_bytes: u64,
    max_pitch: u64,
    dmabuf: bool,
    gpu_direct: bool,
    rdma_writes_ordering: u64,
    rdma_flush_options: u64,
}

impl Device {
    pub(crate) fn open(library: Library, ordinal: u32) -> Result<Self, CallError> {
        let driver = library.driver;
        let mut raw: CUdevice = 0;
        // SAFETY: the pointer is valid for the write of one int.
        let result = unsafe {
            (driver.cuDeviceGet)(&raw mut raw, c_int::try_from(ordinal).unwrap_or(c_int::MAX))
        };
        library.check("cuDeviceGet", result)?;
        let name = text::<NAME_BYTES>(|buffer, len| {
            // SAFETY: the buffer has `len` bytes, and the driver ends what it writes with a NUL within them.
            library.check("cuDeviceGetName", unsafe {
                (driver.cuDeviceGetName)(buffer, len, raw)
            })
        })?;
        let pci_address = text::<PCI_BYTES>(|buffer, len| {
            // SAFETY: as above.
            library.check("cuDeviceGetPCIBusId", unsafe {
                (driver.cuDeviceGetPCIBusId)(buffer, len, raw)
            })
        })?
        .to_ascii_lowercase(); // as the kernel writes it
        let mut uuid = CUuuid { bytes: [0; 16] };
        // SAFETY: the pointer is valid for the write of one UUID.
        let result = unsafe {
            driver.cuDeviceGetUuid_v2.unwrap_or(driver.cuDeviceGetUuid)(&raw mut uuid, raw)
        };
        library.check("cuDeviceGetUuid", result)?;
        let mut bytes = 0_usize;
        // SAFETY: the pointer is valid for the write of one size_t.
        let result = unsafe { (driver.cuDeviceTotalMem_v2)(&raw mut bytes, raw) };
        library.check("cuDeviceTotalMem", result)?;
        let attribute = |which| {
            let mut value: c_int = 0;
            // SAFETY: the pointer is valid for the write of one int.
            let result = unsafe { (driver.cuDeviceGetAttribute)(&raw mut value, which, raw) };
            // A driver that does not know the attribute does not have what it tells of.
            library
                .check("cuDeviceGetAttribute", result)
                .map_or(0, |()| u64::try_from(value).unwrap_or(0))
        };
        Ok(Self {
            library,
            raw,
            ordinal,
            uuid: DeviceUuid(uuid.bytes),
            name,
            numa_node: numa_node(Path::new("/sys/bus/pci/devices"), &pci_address),
            pci_address,
            memory_bytes: bytes as u64,
            max_pitch: attribute(CU_DEVICE_ATTRIBUTE_MAX_PITCH),
            dmabuf: attribute(CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED) != 0,
            rdma_writes_ordering: attribute(CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING),
            rdma_flush_options: attribute(CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS),
            gpu_direct: attribute(CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_SUPPORTED) != 0,
        })
    }

    /// Its number in this process.
    #[must_use]
    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// Its identity, the same in every process.
    #[must_use]
    pub fn uuid(&self) -> DeviceUuid {
        self.uuid
    }

    /// Its name: `NVIDIA H100 80GB HBM3`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is plugged in: `0000:3b:00.0`.
    #[must_use]
    pub fn pci_address(&self) -> &str {
        &self.pci_address
    }

    /// The NUMA node it is plugged into, as the kernel tells; None where it does not.
    #[must_use]
    pub fn numa_node(&self) -> Option<u32> {
        self.numa_node
    }

    /// Bytes of memory it has, free or not.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Can its memory be exported as dma-buf? False with NVIDIA's proprietary kernel modules.
    #[must_use]
    pub fn has_dmabuf(&self) -> bool {
        self.dmabuf && self.library.has_dmabuf()
    }

    /// Can RDMA devices reach its memory at all (by dma-buf or by the peer-memory module)?
    #[must_use]
    pub fn has_gpu_direct_rdma(&self) -> bool {
        self.gpu_direct
    }

    pub(crate) fn rdma_writes_ordering(&self) -> u64 {
        self.rdma_writes_ordering
    }

    pub(crate) fn rdma_flush_options(&self) -> u64 {
        self.rdma_flush_options
    }

    pub(crate) fn tells_dmabuf(&self) -> bool {
        self.dmabuf
    }

    /// Longest stride, in bytes, that one strided copy may have; 0 where the driver does not tell.
    pub(crate) fn max_pitch(&self) -> u64 {
        self.max_pitch
    }

    /// Opens its primary context, the one that engines and libraries of a process share. It takes some
    /// hundred MiB of the GPU's memory until the last holder drops it.
    ///
    /// # Errors
    /// [`ContextError`].
    pub fn context(&self) -> Result<Arc<Context>, ContextError> {
        Context::retain(self)
    }
}

/// Is a module loaded that lets RDMA devices register GPU memory by its address?
#[must_use]
pub fn peer_memory_loaded() -> bool {
    // The driver's own, and the older one that was shipped apart.
    ["nvidia_peermem", "nv_peer_mem"]
        .iter()
        .any(|module| Path::new("/sys/module").join(module).exists())
}

/// A text that the driver writes.
fn text<const BYTES: usize>(
    ask: impl FnOnce(*mut c_char, c_int) -> Result<(), CallError>,
) -> Result<String, CallError> {
    let mut buffer = [0_u8; BYTES];
    // The last byte stays: an end in any case.
    ask(
        buffer.as_mut_ptr().cast(),
        c_int::try_from(BYTES - 1).unwrap_or(0),
    )?;
    let text = CStr::from_bytes_until_nul(&buffer).unwrap_or_default();
    Ok(text.to_string_lossy().into_owned())
}

fn numa_node(devices: &Path, pci_address: &str) -> Option<u32> {
    // An 8-digit domain is written with 4 by the kernel where it fits.
    let short = pci_address
        .strip_prefix("0000")
        .filter(|rest| rest.len() == "0000:00:00.0".len());
    let path = devices.join(short.unwrap_or(pci_address)).join("numa_node");
    // -1 where the machine has one node or the bus does not tell.
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_comes_from_the_kernels_files() {
        let dir = tempfile::tempdir().unwrap();
        for (device, node) in [
            ("0000:3b:00.0", "1\n"),
            ("0000:af:00.0", "-1\n"),
            ("10000:01:00.0", "2\n"),
        ] {
            fs::create_dir(dir.path().join(device)).unwrap();
            fs::write(dir.path().join(device).join("numa_node"), node).unwrap();
        }
        let node = |address| numa_node(dir.path(), address);
        assert_eq!(node("0000:3b:00.0"), Some(1));
        assert_eq!(node("00000000:3b:00.0"), Some(1));
        assert_eq!(node("0000:af:00.0"), None);
        assert_eq!(node("10000:01:00.0"), Some(2));
        assert_eq!(node("0000:ff:00.0"), None);
    }
}
