//! Memory that generation words arrive in, kept between pulls: mapping some for every pull would cost
//! more than the words do.

use std::sync::Arc;

use kvferry_memory::{HostMemory, MemoryError};
use parking_lot::Mutex;

/// Most that is kept: two for each of as many pulls as an engine has at a time, of 64 KiB each at most: what is
/// not used takes no memory.
const MAX_KEPT: usize = 64;

static KEPT: Mutex<Vec<Arc<HostMemory>>> = Mutex::new(Vec::new());

/// Memory of at least this many bytes that nobody uses.
pub(super) fn take(bytes: u64) -> Result<Arc<HostMemory>, MemoryError> {
    let kept = {
        let mut kept = KEPT.lock();
        let fits = |memory: &Arc<HostMemory>| memory.len() >= bytes;
        let at = kept.iter().rposition(fits);
        at.map(|at| kept.swap_remove(at))
    };
    match kept {
        Some(memory) => Ok(memory),
        None => HostMemory::anonymous(bytes).map(Arc::new),
    }
}

/// Keeps memory whose reads have all settled.
pub(super) fn keep(memories: impl IntoIterator<Item = Arc<HostMemory>>) {
    let mut kept = KEPT.lock();
    for memory in memories {
        if kept.len() < MAX_KEPT {
            kept.push(memory);
        }
    }
}
