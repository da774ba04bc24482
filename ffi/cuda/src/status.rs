//! What the driver answers, as words.

use std::fmt;

macro_rules! statuses {
    ($($variant:ident = $code:literal $name:literal, $meaning:literal;)*) => {
        /// A result of the driver API (`CUresult`) other than success.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Status {
            $(#[doc = concat!("`", $name, "`: ", $meaning, ".")] $variant,)*
            /// One this program has no words for.
            Other(i32),
        }

        impl Status {
            /// From the number the driver gave.
            #[must_use]
            pub fn from_code(code: i32) -> Self {
                match code {
                    $($code => Self::$variant,)*
                    other => Self::Other(other),
                }
            }

            /// The driver's number.
            #[must_use]
            pub fn code(self) -> i32 {
                match self {
                    $(Self::$variant => $code,)*
                    Self::Other(code) => code,
                }
            }

            /// As `cuda.h` calls it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                    Self::Other(_) => "an unknown CUresult",
                }
            }

            /// What it means, and what to do.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => $meaning,)*
                    Self::Other(_) => "see CUresult in the CUDA driver API's reference",
                }
            }
        }
    };
}

// Codes and meanings: CUresult in the CUDA driver API's reference, "Data types used by CUDA driver".
statuses! {
    InvalidValue = 1 "CUDA_ERROR_INVALID_VALUE", "the driver refuses an argument";
    OutOfMemory = 2 "CUDA_ERROR_OUT_OF_MEMORY", "the GPU (or the memory that may be pinned) is full; leave the agent some of it (a context alone takes some hundred MiB)";
    NotInitialized = 3 "CUDA_ERROR_NOT_INITIALIZED", "the driver was not initialised in this process; a forked child cannot use its parent's";
    Deinitialized = 4 "CUDA_ERROR_DEINITIALIZED", "the driver is shutting down, as the process ends";
    StubLibrary = 34 "CUDA_ERROR_STUB_LIBRARY", "a toolkit's stub libcuda was loaded; take its lib/stubs out of the library path";
    DeviceUnavailable = 46 "CUDA_ERROR_DEVICE_UNAVAILABLE", "the GPU is in use exclusively or prohibited; set its compute mode to default (nvidia-smi -c DEFAULT)";
    NoDevice = 100 "CUDA_ERROR_NO_DEVICE", "there is no GPU for this process; give the container the GPUs, or look at CUDA_VISIBLE_DEVICES";
    InvalidDevice = 101 "CUDA_ERROR_INVALID_DEVICE", "no such GPU";
    InvalidContext = 201 "CUDA_ERROR_INVALID_CONTEXT", "the context is not valid for this";
    MapFailed = 205 "CUDA_ERROR_MAP_FAILED", "the memory cannot be mapped; the GPUs may not reach each other";
    AlreadyMapped = 208 "CUDA_ERROR_ALREADY_MAPPED", "it is mapped already";
    EccUncorrectable = 214 "CUDA_ERROR_ECC_UNCORRECTABLE", "the GPU's memory lost bytes; restart the agent and look at nvidia-smi -q -d ECC";
    PeerAccessUnsupported = 217 "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED", "these two GPUs cannot reach each other's memory; open the context on the GPU that has it";
    NvlinkUncorrectable = 220 "CUDA_ERROR_NVLINK_UNCORRECTABLE", "an NVLink lost bytes; restart the agent and look at nvidia-smi nvlink -e";
    ContainedFailure = 226 "CUDA_ERROR_CONTAINED", "an error in the GPU was contained to this process; restart the agent";
    OperatingSystem = 304 "CUDA_ERROR_OPERATING_SYSTEM", "a system call failed; processes that share GPU memory must see each other (same IPC and PID namespaces in containers)";
    InvalidHandle = 400 "CUDA_ERROR_INVALID_HANDLE", "the handle means nothing here";
    IllegalState = 401 "CUDA_ERROR_ILLEGAL_STATE", "something is not in the state this needs";
    NotFound = 500 "CUDA_ERROR_NOT_FOUND", "the driver does not know what was named";
    NotReady = 600 "CUDA_ERROR_NOT_READY", "not complete yet";
    IllegalAddress = 700 "CUDA_ERROR_ILLEGAL_ADDRESS", "the GPU met an address that is not mapped: its engine freed memory it had handed over; restart the agent";
    LaunchTimeout = 702 "CUDA_ERROR_LAUNCH_TIMEOUT", "work on the GPU took too long; restart the agent";
    PeerAccessAlreadyEnabled = 704 "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED", "the GPUs reach each other already";
    PrimaryContextActive = 708 "CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE", "the primary context is in use with other flags";
    ContextIsDestroyed = 709 "CUDA_ERROR_CONTEXT_IS_DESTROYED", "the context is gone; restart the agent";
    TooManyPeers = 711 "CUDA_ERROR_TOO_MANY_PEERS", "the GPU reaches as many others as it can; open the context on the GPU that has the memory";
    HostMemoryAlreadyRegistered = 712 "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "the memory is pinned already";
    HostMemoryNotRegistered = 713 "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "the memory is not pinned";
    HardwareStackError = 714 "CUDA_ERROR_HARDWARE_STACK_ERROR", "the GPU failed; restart the agent";
    IllegalInstruction = 715 "CUDA_ERROR_ILLEGAL_INSTRUCTION", "the GPU failed; restart the agent";
    MisalignedAddress = 716 "CUDA_ERROR_MISALIGNED_ADDRESS", "the GPU failed; restart the agent";
    InvalidAddressSpace = 717 "CUDA_ERROR_INVALID_ADDRESS_SPACE", "the GPU failed; restart the agent";
    InvalidProgramCounter = 718 "CUDA_ERROR_INVALID_PC", "the GPU failed; restart the agent";
    LaunchFailed = 719 "CUDA_ERROR_LAUNCH_FAILED", "the GPU failed; restart the agent";
    NotPermitted = 800 "CUDA_ERROR_NOT_PERMITTED", "this process may not do that";
    NotSupported = 801 "CUDA_ERROR_NOT_SUPPORTED", "the GPU, its driver or this system cannot do that";
    SystemNotReady = 802 "CUDA_ERROR_SYSTEM_NOT_READY", "the system is not ready; on NVSwitch machines the fabric manager must run";
    SystemDriverMismatch = 803 "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "libcuda and the kernel's driver have different versions; reboot after a driver update, or mount the host's libcuda in the container";
    CompatNotSupported = 804 "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", "a forward-compatibility libcuda that this GPU does not support; use the driver's own";
    MpsConnectionFailed = 805 "CUDA_ERROR_MPS_CONNECTION_FAILED", "the MPS server does not answer; start it or unset its pipe directory";
    Unknown = 999 "CUDA_ERROR_UNKNOWN", "the driver does not say what; look at the kernel's log (dmesg, Xid)";
}

impl Status {
    /// Is the context of no use any more? The reference says of these that the process must end
    /// before the GPU can be used again.
    #[must_use]
    pub fn is_sticky(self) -> bool {
        matches!(
            self,
            Self::Deinitialized
                | Self::EccUncorrectable
                | Self::NvlinkUncorrectable
                | Self::ContainedFailure
                | Self::IllegalAddress
                | Self::LaunchTimeout
                | Self::ContextIsDestroyed
                | Self::HardwareStackError
                | Self::IllegalInstruction
                | Self::MisalignedAddress
                | Self::InvalidAddressSpace
                | Self::InvalidProgramCounter
                | Self::LaunchFailed
        )
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.name(), self.code(), self.meaning())
    }
}

/// A call of the driver failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {status}{}", own_words(*status, said))]
pub struct CallError {
    /// Which function.
    pub call: &'static str,
    /// What it answered.
    pub status: Status,
    /// The driver's own name and words for it; empty where it has none.
    pub said: String,
}

/// Only where ours say nothing.
fn own_words(status: Status, said: &str) -> String {
    match status {
        Status::Other(_) if !said.is_empty() => format!("; the driver says: {said}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_statuses_are_one_to_one() {
        for code in 0..1000 {
            assert_eq!(Status::from_code(code).code(), code);
        }
        assert_eq!(Status::from_code(2), Status::OutOfMemory);
        assert_eq!(Status::from_code(12_345), Status::Other(12_345));
        assert!(Status::from_code(700).is_sticky());
        assert!(!Status::from_code(600).is_sticky());
    }

    #[test]
    fn an_error_says_the_call_the_name_and_what_to_do() {
        let error = CallError {
            call: "cuDevicePrimaryCtxRetain",
            status: Status::DeviceUnavailable,
            said: String::new(),
        };
        let text = error.to_string();
        assert!(text.contains("cuDevicePrimaryCtxRetain"), "{text}");
        assert!(
            text.contains("CUDA_ERROR_DEVICE_UNAVAILABLE (46)"),
            "{text}"
        );
        assert!(text.contains("nvidia-smi -c DEFAULT"), "{text}");
    }
}
