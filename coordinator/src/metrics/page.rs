//! Names and texts. A text says what a number means and what to do about it.

use std::{fmt, sync::Arc, sync::atomic::Ordering};

use kvferry_observe::{NotReady, Observed, Page};

use super::Metrics;
use crate::{directory::Totals, service::Hub};

/// A coordinator, as its metrics port shows it.
pub(crate) struct CoordinatorObserved {
    hub: Arc<Hub>,
    totals: Arc<Totals>,
}

impl CoordinatorObserved {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        let totals = hub.totals();
        Self { hub, totals }
    }
}

impl Observed for CoordinatorObserved {
    fn tell(&self, page: &mut Page<'_>) -> fmt::Result {
        let metrics = self.hub.metrics();
        calls(metrics, page)?;
        blocks(&self.totals, page)?;
        self.tables(page)?;
        sessions(metrics, page)
    }

    fn ready(&self) -> Result<(), NotReady> {
        match self.hub.metrics().serving.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err("the coordinator does not serve: it is starting, or shutting down".into()),
        }
    }
}

fn calls(metrics: &Metrics, page: &mut Page<'_>) -> fmt::Result {
    let outcomes = metrics.requests.iter();
    page.counters_of(
        "kvferry_coordinator_requests_total",
        "Calls by method and outcome. refused: the caller is wrong or asks for what is not there; exhausted: a bound \
         was reached; unavailable: shutting down, or the caller gave up; failed: a defect, look into the log",
        outcomes.map(|(called, outcome, histogram)| {
            let labels = [
                (label_name(called), label_text(called)),
                (label_name(outcome), label_text(outcome)),
            ];
            (labels, histogram.count())
        }),
    )?;
    page.histograms_seen(
        "kvferry_coordinator_request_duration_seconds",
        "From a call's head until its answer is ready; of Session, until it is open. Pairs of method and outcome that \
         never were are left out",
        &metrics.requests,
    )?;
    page.counter(
        "kvferry_coordinator_locate_hashes_total",
        "Block hashes that Locate was asked for. Beyond the end of a prefix none is looked up, but all are counted",
        metrics.hashes.get(),
    )?;
    page.counter(
        "kvferry_coordinator_locate_found_total",
        "Block hashes that Locate named an owner of. Divided by the hashes asked for, it is the hit ratio",
        metrics.found.get(),
    )?;
    page.counter(
        "kvferry_coordinator_stale_reports_total",
        "Copies that readers found overwritten where they were sent, as agents report with their heartbeats (to each \
         of their coordinators). Some are normal; many say that owners evict faster than their deltas arrive",
        metrics.stale.get(),
    )
}

fn blocks(totals: &Totals, page: &mut Page<'_>) -> fmt::Result {
    page.gauges_of(
        "kvferry_coordinator_blocks",
        "Distinct blocks by how many copies they have. Those of nodes that went count until they are swept out",
        totals
            .blocks
            .iter()
            .map(|(label, blocks)| ([(label_name(label), label_text(label))], blocks.get())),
    )?;
    page.gauge(
        "kvferry_coordinator_copies",
        "Copies of blocks over all nodes. Divided by the blocks, it is the mean number of replicas",
        totals.copies.get(),
    )?;
    page.gauge(
        "kvferry_coordinator_copies_bytes",
        "Bytes of those copies, in agents' memory. Divided by the copies, it is the bytes of a block",
        totals.bytes.get(),
    )?;
    page.counter(
        "kvferry_coordinator_copies_added_total",
        "Copies that agents announced, inventories included",
        totals.added.get(),
    )?;
    page.counter(
        "kvferry_coordinator_copies_removed_total",
        "Copies that went: evicted, overwritten, unregistered, or gone with their node",
        totals.removed.get(),
    )
}

fn sessions(metrics: &Metrics, page: &mut Page<'_>) -> fmt::Result {
    page.counters(
        "kvferry_coordinator_session_messages_total",
        "What agents said on their sessions. An inventory counts once for each of its parts",
        &metrics.messages,
    )?;
    page.counters(
        "kvferry_coordinator_session_ends_total",
        "Sessions that ended. lost: the stream went away; slow: the agent did not read; fenced and old_incarnation: two \
         agents run under one node name; protocol: an agent's defect",
        &metrics.ends,
    )?;
    page.counters(
        "kvferry_coordinator_resyncs_total",
        "Full inventories that were asked for. hello: this coordinator or the agent was restarted; gap: a delta was \
         missing, which should not be",
        &metrics.resyncs,
    )?;
    page.counters(
        "kvferry_coordinator_node_removals_total",
        "Nodes that were forgotten with all they held. silent: they stopped without a goodbye",
        &metrics.removals,
    )?;
    page.counters(
        "kvferry_coordinator_region_refusals_total",
        "Regions that are not part of the directory, so that nobody finds their blocks. mismatch: another model or \
         layout under the same namespace",
        &metrics.refusals,
    )
}

impl CoordinatorObserved {
    fn tables(&self, page: &mut Page<'_>) -> fmt::Result {
        let (sizes, sessions) = (self.hub.sizes(), self.hub.sessions());
        page.gauge(
            "kvferry_coordinator_sessions",
            "Open sessions, those that have not said hello included",
            sessions as u64,
        )?;
        page.gauge(
            "kvferry_coordinator_nodes",
            "Nodes in the directory, hidden ones included",
            sizes.nodes as u64,
        )?;
        page.gauge(
            "kvferry_coordinator_nodes_hidden",
            "Nodes that are silent, so that readers are not sent to them; forgotten after purge_after_ms",
            self.totals.hidden.get(),
        )?;
        page.gauge(
            "kvferry_coordinator_namespaces",
            "Namespaces in the directory",
            sizes.namespaces as u64,
        )?;
        page.gauge(
            "kvferry_coordinator_slots",
            "Slots of all regions, sealed or not: what max_slots bounds",
            sizes.slots,
        )?;
        page.gauges_of(
            "kvferry_coordinator_limit",
            "The bounds this coordinator runs with; beyond one, agents get RESOURCE_EXHAUSTED",
            [
                ("nodes", u64::from(sizes.bounds.nodes)),
                ("namespaces", u64::from(sizes.bounds.namespaces)),
                ("slots", sizes.bounds.slots),
                ("sessions", self.hub.max_sessions() as u64),
            ]
            .map(|(of, most)| ([("of", of)], most)),
        )
    }
}

fn label_name<L: kvferry_observe::Label>(_: L) -> &'static str {
    L::NAME
}

fn label_text<L: kvferry_observe::Label>(label: L) -> &'static str {
    label.as_str()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        directory::{Bounds, DirectoryConfig},
        service::HubConfig,
    };

    #[test]
    fn ready_while_it_serves() {
        let hub = Arc::new(Hub::new(HubConfig {
            directory: DirectoryConfig {
                epoch: 1,
                hide_after: Duration::from_secs(3),
                purge_after: Duration::from_secs(30),
                bounds: Bounds::default(),
            },
            heartbeat_interval_ms: 1_000,
            hide_after_ms: 3_000,
            max_sessions: 1,
        }));
        let observed = CoordinatorObserved::new(hub.clone());
        assert!(observed.ready().is_err(), "nobody listens yet");
        hub.metrics().serve(true);
        assert_eq!(observed.ready(), Ok(()));
        hub.metrics().serve(false);
        assert!(observed.ready().is_err(), "it drains");
    }
}
