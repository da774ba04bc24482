//! How a work request ended, in words for people.

use kvferry_rdma_sys::ibv_wc_status as raw;

macro_rules! statuses {
    ($($(#[doc = $doc:literal])+ $name:ident = $raw:ident, $text:literal;)+) => {
        /// Why a work request failed: what it means and what to do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum WorkStatus {
            $($(#[doc = $doc])+ $name,)+
            /// A number this program does not know.
            Unknown(u32),
        }

        impl WorkStatus {
            /// None is success.
            pub(crate) fn from_raw(status: raw::Type) -> Option<Self> {
                match status {
                    raw::IBV_WC_SUCCESS => None,
                    $(raw::$raw => Some(Self::$name),)+
                    other => Some(Self::Unknown(other)),
                }
            }
        }

        impl std::fmt::Display for WorkStatus {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self {
                    $(Self::$name => f.write_str(concat!($text, " (", stringify!($raw), ")")),)+
                    Self::Unknown(number) => write!(
                        f,
                        "the device reports status {number}, which this program does not know; see the device's log"
                    ),
                }
            }
        }
    };
}

statuses! {
    /// More bytes than the local list has room for, or than the port sends in one message.
    LocalLength = IBV_WC_LOC_LEN_ERR,
        "the local pieces do not fit the bytes read: a bug of this program";
    /// The request cannot be carried out by this queue pair.
    LocalOperation = IBV_WC_LOC_QP_OP_ERR,
        "the device cannot do this request: it has no route to the peer (its own link is down; Soft-RoCE says it so), or the request has more pieces or bytes than the queue pair was made for; connect again or use another path";
    /// End-to-end context; not used by reliable connections.
    LocalContext = IBV_WC_LOC_EEC_OP_ERR,
        "the device reports an end-to-end context error, which reliable connections do not have; see the device's log";
    /// The local memory is not registered for writing.
    LocalProtection = IBV_WC_LOC_PROT_ERR,
        "the local memory is not registered for this: its region was dropped or has other bounds, a bug of this program";
    /// Was under way when the queue pair failed or was closed.
    Flushed = IBV_WC_WR_FLUSH_ERR,
        "given up because an earlier request failed or the connection was closed; read again over a new one";
    /// Memory windows; not used.
    WindowBinding = IBV_WC_MW_BIND_ERR,
        "the device reports a memory window error, and none are used here; see the device's log";
    /// The answer makes no sense.
    BadResponse = IBV_WC_BAD_RESP_ERR,
        "the peer's device answered what was not asked: different packet sizes or sequence numbers on the two sides; connect again";
    /// The local device may not write there.
    LocalAccess = IBV_WC_LOC_ACCESS_ERR,
        "the local device may not write to the local memory: it was registered without the right to";
    /// The peer found the request malformed.
    RemoteInvalidRequest = IBV_WC_REM_INV_REQ_ERR,
        "the peer's device refuses the request as invalid: it was connected without the right to be read, or takes no request of this size";
    /// The peer has no such memory to read.
    RemoteAccess = IBV_WC_REM_ACCESS_ERR,
        "the peer refuses the address or key: the region is gone, was registered anew or is smaller; ask for its regions again";
    /// The peer failed.
    RemoteOperation = IBV_WC_REM_OP_ERR,
        "the peer's device failed at the request; look at the peer's log, and use another owner";
    /// Nobody answers.
    RetriesExceeded = IBV_WC_RETRY_EXC_ERR,
        "the peer does not answer: it is gone, its link is down, or packets are lost on the way (on RoCE: check PFC/ECN and the MTU of every switch); connect again or use another path";
    /// The peer stays busy.
    ReceiverNotReady = IBV_WC_RNR_RETRY_EXC_ERR,
        "the peer kept saying it is not ready; it is overloaded: back off, then connect again";
    /// Reliable datagrams; not used.
    LocalDomain = IBV_WC_LOC_RDD_VIOL_ERR,
        "the device reports a reliable datagram error, and none are used here; see the device's log";
    /// Reliable datagrams; not used.
    RemoteInvalidDatagram = IBV_WC_REM_INV_RD_REQ_ERR,
        "the peer reports a reliable datagram error, and none are used here; see the peer's log";
    /// The peer gave up.
    RemoteAbort = IBV_WC_REM_ABORT_ERR,
        "the peer's device gave the request up; connect again";
    /// End-to-end context; not used by reliable connections.
    InvalidContextNumber = IBV_WC_INV_EECN_ERR,
        "the device reports an invalid end-to-end context, which reliable connections do not have; see the device's log";
    /// End-to-end context; not used by reliable connections.
    InvalidContextState = IBV_WC_INV_EEC_STATE_ERR,
        "the device reports an end-to-end context in a wrong state, which reliable connections do not have; see the device's log";
    /// The device itself is broken.
    Fatal = IBV_WC_FATAL_ERR,
        "the device failed and must be reset; use another device, and see the kernel's log";
    /// No answer in time.
    ResponseTimeout = IBV_WC_RESP_TIMEOUT_ERR,
        "the peer's answer did not come in time; connect again or use another path";
    /// Anything else.
    General = IBV_WC_GENERAL_ERR,
        "the device reports an error without a name; see the kernel's log";
    /// Tag matching; not used.
    TagMatching = IBV_WC_TM_ERR,
        "the device reports a tag matching error, and none is used here; see the device's log";
    /// Tag matching; not used.
    TagRendezvous = IBV_WC_TM_RNDV_INCOMPLETE,
        "the device reports an incomplete rendezvous, and none is used here; see the device's log";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_says_what_it_means_and_its_name() {
        assert_eq!(WorkStatus::from_raw(0), None);
        for number in 1..=raw::IBV_WC_TM_RNDV_INCOMPLETE {
            let status = WorkStatus::from_raw(number).unwrap();
            assert!(!matches!(status, WorkStatus::Unknown(_)), "{number}");
            assert!(status.to_string().contains("IBV_WC_"), "{status}");
        }
        let unknown = WorkStatus::from_raw(4711).unwrap();
        assert_eq!(unknown, WorkStatus::Unknown(4711));
        assert!(unknown.to_string().contains("4711"));
    }

    #[test]
    fn the_common_ones_tell_what_to_do() {
        let text = WorkStatus::RetriesExceeded.to_string();
        assert!(text.contains("does not answer") && text.contains("connect again"));
        let text = WorkStatus::RemoteAccess.to_string();
        assert!(text.contains("key") && text.contains("ask for its regions again"));
    }
}
