//! How many threads an agent runs on.

/// Most threads of an agent that carry calls and sockets: one receives about 5 GB/s, so these fill
/// 200 Gb/s. Copies and checksums have threads of their own.
pub const MAX_WORKERS: usize = 8;

/// Half the cores: the other half is the engine's. On two cores that is one thread, and there it is
/// also the faster choice: what one thread does next costs nothing, and waking another one costs as
/// much as a small pull.
#[must_use]
pub fn worker_threads(cores: usize) -> usize {
    (cores / 2).clamp(1, MAX_WORKERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_leaves_cores_to_its_engine() {
        assert_eq!([1, 2, 4, 64].map(worker_threads), [1, 1, 2, 8]);
    }
}
