//! The agent in numbers.

use kvferry_proto::pb;

use super::LocalApi;

impl LocalApi {
    pub(crate) fn numbers(&self) -> pb::StatsResponse {
        let store = self.store.stats();
        let last_delta = self.log.last();
        let coordinators = self
            .sessions
            .iter()
            .zip(&self.coordinator_addresses)
            .map(|(session, address)| {
                let status = session.borrow();
                pb::CoordinatorLink {
                    address: address.clone(),
                    connected: status.connected,
                    unacknowledged_deltas: last_delta.saturating_sub(status.acknowledged),
                    resyncs: status.resyncs,
                    last_error: status.last_error.clone(),
                }
            })
            .collect();
        let regions = store
            .regions
            .iter()
            .map(|stats| pb::RegionStats {
                region: Some(self.describe_region(&stats.region)),
                free: stats.free,
                reserved: stats.reserved,
                sealed: stats.sealed,
                pinned: stats.pinned,
                quarantined: stats.quarantined,
                evictions: stats.evictions,
            })
            .collect();
        let pulls = &self.pulls;
        let (blocks_pulled, bytes_pulled) = pulls.pulled();
        pb::StatsResponse {
            node: self.identity.node.to_string(),
            incarnation: self.identity.incarnation.get(),
            regions,
            coordinators,
            reservations: store.reservations,
            pins: store.pins,
            pulls_in_flight: pulls.in_flight(),
            blocks_pulled,
            bytes_pulled,
            blocks_stale: pulls.stale(),
            blocks_failed: pulls.failed(),
            bytes_served: self.served.bytes_sent(),
            peers_suspect: self.links.suspects() as u64,
        }
    }
}
