//! Why memory could not be registered.

use std::io;

use crate::MemlockLimit;

/// Memory could not be registered with a device.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Zero bytes were asked for.
    #[error("a region of zero bytes cannot be registered")]
    Empty,
    /// Beyond the end of the memory.
    #[error("bytes {offset}+{bytes} are outside memory of {memory} bytes")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// How many.
        bytes: u64,
        /// Bytes there are.
        memory: u64,
    },
    /// More than the device takes: register it in parts.
    #[error("{device} registers at most {most} bytes as one region, {bytes} were asked for")]
    TooLarge {
        /// The device.
        device: String,
        /// As asked for.
        bytes: u64,
        /// What it takes.
        most: u64,
    },
    /// The limit on locked memory is too low.
    #[error(
        "{device}: cannot register {bytes} bytes: this process may lock {limit} of memory \
         (RLIMIT_MEMLOCK), all regions together; set it to unlimited: `LimitMEMLOCK=infinity` in a systemd unit, \
         `--ulimit memlock=-1` for a container, `memlock unlimited` in /etc/security/limits.conf, or \
         give the process CAP_IPC_LOCK"
    )]
    MemoryLock {
        /// The device.
        device: String,
        /// As asked for.
        bytes: u64,
        /// What holds for this process.
        limit: MemlockLimit,
    },
    /// There is no limit, and no memory either.
    #[error("{device}: cannot register {bytes} bytes: out of memory or of the device's tables")]
    NoMemory {
        /// The device.
        device: String,
        /// As asked for.
        bytes: u64,
    },
    /// The pages cannot be used by a device.
    #[error(
        "{device}: cannot register {bytes} bytes: the pages cannot be pinned; the memory is mapped \
         read-only, or is a file on a disk's file system"
    )]
    NotPinnable {
        /// The device.
        device: String,
        /// As asked for.
        bytes: u64,
    },
    /// libibverbs is too old for dma-buf.
    #[error(
        "{device}: this libibverbs cannot register dma-buf descriptors; rdma-core 34 or later can"
    )]
    NoDmaBuf {
        /// The device.
        device: String,
    },
    /// The driver does not take the dma-buf.
    #[error("{device}: the driver does not register this dma-buf of {bytes} bytes: {source}")]
    DmaBufRefused {
        /// The device.
        device: String,
        /// As asked for.
        bytes: u64,
        /// What it said.
        source: io::Error,
    },
    /// Anything else.
    #[error("{device}: cannot register {bytes} bytes: {source}; see the kernel's log")]
    Device {
        /// The device.
        device: String,
        /// As asked for.
        bytes: u64,
        /// What the driver said.
        source: io::Error,
    },
}

impl RegisterError {
    pub(crate) fn from_os(
        device: &str,
        bytes: u64,
        source: io::Error,
        limit: MemlockLimit,
    ) -> Self {
        let device = device.to_owned();
        match source.raw_os_error() {
            Some(libc::ENOMEM) if limit.current_bytes.is_some() => Self::MemoryLock {
                device,
                bytes,
                limit,
            },
            Some(libc::ENOMEM) => Self::NoMemory { device, bytes },
            Some(libc::EFAULT | libc::EOPNOTSUPP) => Self::NotPinnable { device, bytes },
            _ => Self::Device {
                device,
                bytes,
                source,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(errno: i32, current_bytes: Option<u64>) -> RegisterError {
        let limit = MemlockLimit {
            current_bytes,
            maximum_bytes: None,
        };
        RegisterError::from_os(
            "mlx5_0",
            1 << 30,
            io::Error::from_raw_os_error(errno),
            limit,
        )
    }

    #[test]
    fn the_memlock_limit_is_named_with_what_to_set() {
        let text = from(libc::ENOMEM, Some(8_388_608)).to_string();
        for part in [
            "mlx5_0",
            "1073741824 bytes",
            "8388608 bytes",
            "RLIMIT_MEMLOCK",
            "LimitMEMLOCK=infinity",
            "memlock=-1",
        ] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }

    #[test]
    fn other_causes_are_told_apart() {
        assert!(matches!(
            from(libc::ENOMEM, None),
            RegisterError::NoMemory { .. }
        ));
        assert!(matches!(
            from(libc::EFAULT, None),
            RegisterError::NotPinnable { .. }
        ));
        assert!(matches!(
            from(libc::EIO, Some(1)),
            RegisterError::Device { .. }
        ));
    }
}
