//! Request traces, as `kvferry bench replay` reads them.

use std::time::Duration;

use crate::Target;

// The harness's own file: the rest of it is much to build, and reads nothing from outside.
#[allow(dead_code, unreachable_pub)]
#[path = "../../../../bench/src/replay/trace.rs"]
mod replay;

pub(super) const TARGET: Target = Target {
    name: "trace",
    run,
    seeds,
};

fn run(bytes: &[u8]) {
    let Ok(trace) = replay::Trace::read(bytes, usize::MAX, Duration::MAX) else {
        return;
    };
    assert!(trace.requests.is_sorted_by_key(|request| request.at));
    let best = trace.best_hit();
    assert!((0.0..=1.0).contains(&best), "{best}");
    let (distinct, count) = (trace.distinct_blocks(), trace.requests.len());
    if let Ok(copies) = trace.copies(3) {
        assert_eq!(copies.requests.len(), 3 * count);
        assert!(copies.distinct_blocks() >= distinct);
        assert!(copies.requests.is_sorted_by_key(|request| request.at));
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let two = "{\"timestamp\": 0, \"input_length\": 1000, \"output_length\": 5, \"hash_ids\": [0, 1]}\n\n\
        {\"timestamp\": 2000, \"input_length\": 1025, \"output_length\": 5, \"hash_ids\": [0, 1, 2], \"more\": true}\n";
    vec![two.as_bytes().to_vec()]
}
