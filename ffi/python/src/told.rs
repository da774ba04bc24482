//! What an agent answers, as Python is told it: tuples, of which `kvferry` makes its classes.

use kvferry_proto::pb;
use pyo3::{IntoPyObjectExt, prelude::*};

/// A region, as Python makes one: (id, namespace, fingerprint, slots, [(base, stride, len)], pool, incarnation, device_uuid)
pub(crate) fn tell_region(py: Python<'_>, it: &pb::RegionInfo) -> PyResult<Py<PyAny>> {
    let geometry = it.geometry.clone().unwrap_or_default();
    let planes: Vec<_> = geometry
        .planes
        .iter()
        .map(|plane| (plane.base, plane.stride, plane.len))
        .collect();
    let region = (
        it.region,
        it.namespace.as_str(),
        it.fingerprint.as_str(),
        geometry.slots,
        planes,
        it.pool,
        it.incarnation,
        it.device_uuid.as_str(),
    );
    region.into_py_any(py)
}

/// An agent's numbers: (node, incarnation, [(region, slots)], [coordinator], counters)
pub(crate) fn tell_stats(py: Python<'_>, it: &pb::StatsResponse) -> PyResult<Py<PyAny>> {
    let mut regions = Vec::with_capacity(it.regions.len());
    for stats in &it.regions {
        let info = stats.region.clone().unwrap_or_default();
        regions.push((
            tell_region(py, &info)?,
            (
                stats.free,
                stats.reserved,
                stats.sealed,
                stats.pinned,
                stats.quarantined,
                stats.evictions,
            ),
        ));
    }
    let coordinators: Vec<_> = it
        .coordinators
        .iter()
        .map(|link| {
            (
                link.address.as_str(),
                link.connected,
                link.unacknowledged_deltas,
                link.resyncs,
                link.last_error.as_str(),
            )
        })
        .collect();
    let numbers = [
        it.reservations,
        it.pins,
        it.pulls_in_flight,
        it.blocks_pulled,
        it.bytes_pulled,
        it.blocks_stale,
        it.blocks_failed,
        it.bytes_served,
        it.peers_suspect,
    ];
    let stats = (
        it.node.as_str(),
        it.incarnation,
        regions,
        coordinators,
        numbers,
    );
    stats.into_py_any(py)
}

/// What came of a seal: (generations, duplicate slots, announced)
pub(crate) fn tell_sealed(py: Python<'_>, it: &pb::SealResponse) -> PyResult<Py<PyAny>> {
    let told = (
        it.generations.clone(),
        it.duplicate_slots.clone(),
        it.announced,
    );
    told.into_py_any(py)
}

/// What is pinned: (pin, [(region, slot, generation), or None])
pub(crate) fn tell_pinned(py: Python<'_>, it: &pb::PinResponse) -> PyResult<Py<PyAny>> {
    let blocks = it.blocks.iter();
    let blocks: Vec<_> = blocks
        .map(|it| it.pinned.then_some((it.region, it.slot, it.generation)))
        .collect();
    (it.pin, blocks).into_py_any(py)
}

/// What came of a claim: (states, token, milliseconds, [(node, milliseconds)], holders' places)
pub(crate) fn tell_claimed(py: Python<'_>, it: &pb::ClaimResponse) -> PyResult<Py<PyAny>> {
    let holders = it.holders.iter();
    let holders: Vec<_> = holders
        .map(|it| (it.node.as_str(), it.expires_in_ms))
        .collect();
    let told = (
        it.states.clone(),
        it.token,
        it.ttl_ms,
        holders,
        it.holder_index.clone(),
    );
    told.into_py_any(py)
}
