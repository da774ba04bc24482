//! Names and texts. A text says what a number means and what to do about it.

use std::{fmt, sync::Arc, sync::atomic::Ordering};

use kvferry_observe::{NotReady, Observed, Page};
use kvferry_security::{Gate, tls::DoorCounts};

use super::Metrics;
use crate::{
    directory::{Counts, Totals},
    service::Hub,
};

/// A coordinator, as its metrics port shows it.
pub(crate) struct CoordinatorObserved {
    hub: Arc<Hub>,
    door: Arc<DoorCounts>,
    totals: Arc<Totals>,
    counts: Arc<Counts>,
}

impl CoordinatorObserved {
    pub(crate) fn new(hub: Arc<Hub>, door: Arc<DoorCounts>) -> Self {
        let (totals, counts) = (hub.totals(), hub.counts());
        Self {
            hub,
            door,
            totals,
            counts,
        }
    }
}

impl Observed for CoordinatorObserved {
    fn tell(&self, page: &mut Page<'_>) -> fmt::Result {
        let metrics = self.hub.metrics();
        calls(metrics, page)?;
        blocks(&self.totals, page)?;
        claims(&self.counts, page)?;
        locations(&self.counts, page)?;
        watchers(metrics, &self.counts, page)?;
        copying(metrics, page)?;
        sources(metrics, page)?;
        self.tables(page)?;
        page.counters(
            "kvferry_coordinator_tickets_total",
            "Tickets that readers asked for, to be let in by owners. denied: no right to what was asked for, the log says \
             to whom; no_key: this coordinator has no ticket_key and others of its cluster have",
            &metrics.tickets,
        )?;
        security(self.hub.gate(), &self.door, page)?;
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
        "Calls by method and outcome; methods of services beside Coordinator are named with their service. refused: the caller is wrong or asks for what is not there; exhausted: a bound \
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
        "From a call's head until its answer is ready; of Session and Watch, until it is open. Pairs of method and outcome that \
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

fn claims(counts: &Counts, page: &mut Page<'_>) -> fmt::Result {
    page.gauge(
        "kvferry_coordinator_claims",
        "Claims that are held: the right to produce or store a block, until it is there",
        counts.claims.get(),
    )?;
    page.counter(
        "kvferry_coordinator_claims_granted_total",
        "Claims that were granted, to each of their holders once",
        counts.claims_granted.get(),
    )?;
    page.counters(
        "kvferry_coordinator_claims_ended_total",
        "Claims that are not held any more. fulfilled: the block is there; expired: the lease ran out first, many say \
         that claimants die or that leases are too short; node_gone: the claimant's node went",
        &counts.claims_ended,
    )
}

fn locations(counts: &Counts, page: &mut Page<'_>) -> fmt::Result {
    page.gauge(
        "kvferry_coordinator_locations",
        "Blocks that have a location in shared storage",
        counts.locations.get(),
    )?;
    page.gauge(
        "kvferry_coordinator_locations_bytes",
        "Bytes of those blocks, by their namespaces' block sizes: what lies in shared storage, if it is stored as it is",
        counts.locations_bytes.get(),
    )?;
    page.counter(
        "kvferry_coordinator_locations_added_total",
        "Blocks that were given a location and had none",
        counts.locations_added.get(),
    )?;
    page.counters(
        "kvferry_coordinator_locations_ended_total",
        "Blocks whose location was forgotten. ttl: its time was over; quota: its namespace had more than it may; bound: \
         max_locations was reached, raise it or set quotas; removed: whoever stores blocks said so",
        &counts.locations_ended,
    )
}

fn watchers(metrics: &Metrics, counts: &Counts, page: &mut Page<'_>) -> fmt::Result {
    page.gauge(
        "kvferry_coordinator_watchers",
        "Streams that are told what changes in a namespace",
        counts.watchers.get(),
    )?;
    page.gauge(
        "kvferry_coordinator_watch_logs",
        "Namespaces whose changes are kept for those who watch, or did until a minute ago; at most 32",
        counts.watch_logs.get(),
    )?;
    page.gauge(
        "kvferry_coordinator_watch_log_bytes",
        "Bytes of changes kept, over all namespaces; at most 32 MiB for each",
        counts.watch_log_bytes.get(),
    )?;
    page.counter(
        "kvferry_coordinator_watch_changes_total",
        "Changes that watchers were told, each of them each: of copies, nodes and regions, those of their start included",
        metrics.watch_told.get(),
    )?;
    page.counters(
        "kvferry_coordinator_watch_ends_total",
        "Watchers that are told no more. behind: changes came faster than it took them, and were not kept; stuck: it \
         took nothing for ten seconds. Both start anew",
        &metrics.unwatched,
    )
}

fn copying(metrics: &Metrics, page: &mut Page<'_>) -> fmt::Result {
    let copying = &metrics.copying;
    page.counter(
        "kvferry_coordinator_surplus_hints_total",
        "Copies that agents were told to evict first, because others hold as many as the namespace wants",
        metrics.surplus.get(),
    )?;
    page.gauge(
        "kvferry_coordinator_copies_wanted_namespaces",
        "Namespaces that copies are wanted in: of all blocks, or of hot ones",
        copying.namespaces.get(),
    )?;
    page.gauge(
        "kvferry_coordinator_copies_wanted_blocks",
        "Hot blocks: those that copies are wanted of one by one",
        copying.hot.get(),
    )?;
    page.gauge(
        "kvferry_coordinator_copies_lacking_blocks",
        "Blocks with fewer copies than wanted, in the last round over their namespace. Staying above nothing: no node \
         has room, see the outcomes of orders",
        copying.lacking.get(),
    )?;
    page.gauge(
        "kvferry_coordinator_copy_orders_in_flight",
        "Orders to copy that agents have, and have not answered",
        copying.under_way.get(),
    )?;
    page.counters(
        "kvferry_coordinator_copy_orders_total",
        "Orders to copy that are over, of up to 64 blocks each. full: no free slot there; refused: the agent runs with \
         replicate = false; busy: it has enough to do, or does not read",
        &copying.orders,
    )?;
    page.counters(
        "kvferry_coordinator_ordered_copies_total",
        "Copies of blocks that were ordered. failed: they are tried on another node",
        &copying.copies,
    )?;
    let drains = copying.drains.iter();
    page.gauges_of(
        "kvferry_coordinator_drains",
        "Nodes being drained. moving: they hold blocks nobody else has; moved: they may be stopped; expired: the \
         deadline passed and blocks are left, which stopping them loses",
        drains.map(|(state, drains)| ([(label_name(state), label_text(state))], drains.get())),
    )?;
    page.gauge(
        "kvferry_coordinator_drains_left_blocks",
        "Blocks that only nodes being drained held, in the last rounds over them",
        copying.drains_left.get(),
    )
}

fn sources(metrics: &Metrics, page: &mut Page<'_>) -> fmt::Result {
    let sources = &metrics.sources;
    page.gauge(
        "kvferry_coordinator_sources",
        "Named sets of tensors, those whose workers went a minute ago included",
        sources.sources.get(),
    )?;
    let workers = sources.workers.iter();
    page.gauges_of(
        "kvferry_coordinator_source_workers",
        "Their workers, one per rank and node. stale: silent, rewritten, or reported by several readers; gone: ended, and \
         remembered for a minute",
        workers.map(|(state, workers)| ([(label_name(state), label_text(state))], workers.get())),
    )?;
    page.counters(
        "kvferry_coordinator_source_worker_changes_total",
        "Workers that came to stand like that. Many stale ones: look for nodes that come and go",
        &sources.changes,
    )?;
    page.gauge(
        "kvferry_coordinator_source_tables_bytes",
        "Bytes of tensor descriptors kept",
        sources.table_bytes.get(),
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
         missing, which should not be; refused: a quota was raised, and a region that was refused may be declared again",
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
                ("claims", sizes.bounds.claims),
                ("locations", sizes.bounds.locations),
                ("sessions", self.hub.max_sessions() as u64),
            ]
            .map(|(of, most)| ([("of", of)], most)),
        )
    }
}

fn security(gate: &Gate, door: &DoorCounts, page: &mut Page<'_>) -> fmt::Result {
    page.counters(
        "kvferry_coordinator_handshakes_total",
        "TLS handshakes by outcome. refused: a certificate is no good, the log says whose; late: cut off unfinished; \
         clear: somebody spoke in clear; too_many: turned away unheard, as many were under way as may be",
        door,
    )?;
    page.counters(
        "kvferry_coordinator_unauthenticated_total",
        "Calls turned away because the policy does not know who asks, by what he showed",
        gate.turned_away(),
    )?;
    page.gauge(
        "kvferry_coordinator_policy_bad",
        "1 while the policy file is of no use and an earlier reading of it is in force: look into the log",
        u64::from(gate.policy_is_bad()),
    )?;
    page.counter(
        "kvferry_coordinator_policy_bad_reads_total",
        "Times that the policy file had changed and was of no use",
        gate.bad_policies(),
    )
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
            ticket_keys: Vec::new(),
        }));
        let observed = CoordinatorObserved::new(hub.clone(), Arc::default());
        assert!(observed.ready().is_err(), "nobody listens yet");
        hub.metrics().serve(true);
        assert_eq!(observed.ready(), Ok(()));
        hub.metrics().serve(false);
        assert!(observed.ready().is_err(), "it drains");
    }
}
