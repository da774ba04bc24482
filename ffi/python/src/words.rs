//! What several calls are given: tuples that `kvferry._words` makes, so that there is one place that knows their order.

use std::time::Duration;

use bytes::Bytes;
use kvferry_client::{Cause, Failure};
use kvferry_proto::{MAX_HASHES_PER_REQUEST, MAX_PLANES, pb};
use pyo3::{prelude::*, pybacked::PyBackedBytes};

use crate::failure::raise;

/// Longest wait that a call may be given.
const MAX_TIMEOUT_S: f64 = 600.0;

/// (name, dtype, tokens_per_block, planes, plane_bytes, hash_len, checksum)
pub(crate) type NamespaceWords = (String, String, u32, u32, u64, u32, i32);
/// (slots, [(base, stride, len)])
pub(crate) type GeometryWords = (u32, Vec<(u64, u64, u64)>);
/// (hash_len, the hashes back to back)
pub(crate) type HashesWords = (u32, PyBackedBytes);

pub(crate) fn namespace(it: NamespaceWords) -> pb::NamespaceSpec {
    let (name, dtype, tokens_per_block, plane_count, plane_bytes, hash_len, checksum) = it;
    pb::NamespaceSpec {
        name,
        layout: Some(pb::Layout {
            dtype,
            tokens_per_block,
            plane_count,
            plane_bytes,
        }),
        hash_len,
        checksum,
    }
}

pub(crate) fn geometry(py: Python<'_>, it: GeometryWords) -> PyResult<pb::Geometry> {
    let (slots, planes) = it;
    bounded(py, planes.len(), MAX_PLANES, "planes")?;
    let planes = planes
        .into_iter()
        .map(|(base, stride, len)| pb::Plane { base, stride, len })
        .collect();
    Ok(pb::Geometry { slots, planes })
}

pub(crate) fn hashes(py: Python<'_>, it: HashesWords) -> PyResult<pb::PackedHashes> {
    let (hash_len, hashes) = it;
    let packed = pb::PackedHashes {
        hash_len,
        hashes: Bytes::copy_from_slice(&hashes),
    };
    if !(8..=64).contains(&hash_len) && !packed.hashes.is_empty() {
        let text = format!("hashes of {hash_len} bytes; 8 to 64 are allowed");
        return Err(raise(py, &Failure::new(Cause::HashLength, text)));
    }
    bounded(py, count(&packed), MAX_HASHES_PER_REQUEST, "hashes")?;
    Ok(packed)
}

/// How many there are.
pub(crate) fn count(hashes: &pb::PackedHashes) -> usize {
    hashes.hashes.len() / hashes.hash_len.max(1) as usize
}

/// Slots of one call.
pub(crate) fn slots(py: Python<'_>, slots: Vec<u32>) -> PyResult<Vec<u32>> {
    bounded(py, slots.len(), MAX_HASHES_PER_REQUEST, "slots")?;
    Ok(slots)
}

fn bounded(py: Python<'_>, found: usize, max: usize, what: &str) -> PyResult<()> {
    if found <= max {
        return Ok(());
    }
    let text = format!("{found} {what}; at most {max} are allowed in one call: split it");
    Err(raise(py, &Failure::new(Cause::BoundReached, text)))
}

/// Seconds as a wait within a bound.
pub(crate) fn seconds(py: Python<'_>, seconds: f64, max: f64, what: &str) -> PyResult<Duration> {
    if (0.0..=max).contains(&seconds) {
        return Ok(Duration::from_secs_f64(seconds));
    }
    let text = format!("{what} is {seconds} s; 0 to {max} are allowed");
    Err(raise(py, &Failure::invalid(text)))
}

/// A call's deadline.
pub(crate) fn timeout(py: Python<'_>, given: f64, what: &str) -> PyResult<Duration> {
    seconds(py, given, MAX_TIMEOUT_S, what)
}

/// As the wire has it; 0 there means something else than no time.
pub(crate) fn wire_ms(time: Duration) -> u32 {
    // Bounded by what `seconds` lets through.
    (time.as_millis() as u32).max(1)
}
