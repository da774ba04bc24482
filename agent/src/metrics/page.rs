//! Names and texts. A text says what a number means and what to do about it.

use std::{fmt, sync::Arc};

use kvferry_observe::{Label, NotReady, Observed, Page};
use kvferry_security::tls::DoorCounts;

use crate::{region::StoreStats, service::LocalApi, transport::TransportKind};

/// An agent, as its metrics port shows it.
pub(crate) struct AgentObserved(pub(crate) LocalApi, pub(crate) Arc<DoorCounts>);

impl Observed for AgentObserved {
    fn tell(&self, page: &mut Page<'_>) -> fmt::Result {
        self.pulls(page)?;
        self.background(page)?;
        self.ways(page)?;
        self.gpus(page)?;
        self.tickets(page)?;
        memory(&self.0.store.stats(), page)?;
        page.counters(
            "kvferry_agent_handshakes_total",
            "TLS handshakes at the Peer service by outcome. refused: a certificate is no good, the log says whose; late: cut \
             off unfinished; clear: somebody spoke in clear; too_many: turned away unheard, as many were under way as may be",
            &self.1,
        )?;
        page.counters(
            "kvferry_agent_data_handshakes_total",
            "TLS handshakes at the data port by outcome, where it speaks TLS (data_tls); as those of the Peer service. Connections \
             turned away as too many are part of none",
            self.0.served.handshakes(),
        )?;
        page.counters(
            "kvferry_agent_payload_refused_total",
            "Data connections to peers that were not used, since their way was not as safe as it must be. clear: the peer \
             speaks in clear, and this agent takes payload by TLS only; downgraded: it should speak TLS, and who answers does \
             not; certificate, our_certificate: the log says what is wrong with which; no_ca: set tls_ca",
            &self.0.payload,
        )?;
        self.sessions(page)
    }

    fn ready(&self) -> Result<(), NotReady> {
        let mut sessions = self.0.sessions.iter();
        if !sessions.any(|session| session.borrow().connected) {
            return Err(
                "no session with a coordinator is established: nobody finds what is held here"
                    .into(),
            );
        }
        if self.0.store.stats().regions.is_empty() {
            return Err("no memory is registered yet: an engine registers it, or its first pull makes a pool".into());
        }
        Ok(())
    }
}

impl AgentObserved {
    fn pulls(&self, page: &mut Page<'_>) -> fmt::Result {
        let (pulls, transfer) = (&self.0.pulls, &self.0.transfer);
        page.counter(
            "kvferry_agent_pulls_total",
            "Pulls begun, those of Get included",
            pulls.begun.get(),
        )?;
        page.gauge(
            "kvferry_agent_pulls_in_flight",
            "Pulls that have not ended",
            pulls.in_flight(),
        )?;
        page.histogram(
            "kvferry_agent_pull_duration_seconds",
            "Whole pulls, from the call until the last outcome",
            &pulls.took,
        )?;
        page.histograms(
            "kvferry_agent_pull_phase_duration_seconds",
            "Operations of pulls: one Locate, one link opened, one read of some blocks (wire), one read of their \
             generation words where those do not come with the blocks (validate), one batch of checksums. They overlap and do not add up to the pull. Wire \
             high: the path or its owner is slow; validate high and wire low: many small reads",
            &transfer.phases,
        )?;
        page.counters(
            "kvferry_agent_blocks_total",
            "Blocks of pulls by what became of them. stale: every copy was overwritten before it was read, recompute; \
             corrupt: bytes did not match their checksum, look at the owner's memory; locate_failed: no coordinator \
             answered; no_space: the pool is full of pinned blocks; denied: owners \
             refuse this agent's tickets or its user, or it is given none: rights, clocks, the \
             coordinator's key, allow_uids",
            &pulls.outcomes,
        )?;
        page.counter(
            "kvferry_agent_pull_deadlines_total",
            "Pulls whose deadline came before all their blocks",
            pulls.deadlines.get(),
        )?;
        page.counters(
            "kvferry_agent_failed_copies_total",
            "Owners' copies that were tried and did not give their block (in stages: a stage of it); another copy may \
             have. stale: overwritten since it was announced; its rate beside that of pulled blocks says how old hints are",
            &transfer.failed_copies,
        )?;
        page.counters_of(
            "kvferry_agent_pulled_blocks_total",
            "Blocks that came from other nodes, by transport",
            proven().map(|kind| (transport(kind), pulls.blocks.of(kind).get())),
        )?;
        page.counters_of(
            "kvferry_agent_pulled_bytes_total",
            "Their bytes. What was read and found stale is not part of it",
            proven().map(|kind| (transport(kind), pulls.bytes.of(kind).get())),
        )
    }

    /// What was brought here beside what engines asked for block by block.
    fn background(&self, page: &mut Page<'_>) -> fmt::Result {
        let pulls = &self.0.pulls;
        page.counters(
            "kvferry_agent_copy_orders_total",
            "Orders of coordinators to copy blocks that were carried out. full: no slot was free; refused: replicate = \
             false, or the order made no sense. Those that were turned away as too many are counted by coordinators",
            &pulls.copy_orders,
        )?;
        page.counter(
            "kvferry_agent_copies_made_total",
            "Blocks that are here because a coordinator ordered it, those that were here already included",
            pulls.copies_made.get(),
        )?;
        page.counter(
            "kvferry_agent_tensor_pulls_total",
            "Pulls of tensors begun. Their chunks are blocks, and count as those of pulls do",
            pulls.tensors_begun.get(),
        )?;
        page.counters(
            "kvferry_agent_tensor_pulls_ended_total",
            "Pulls of tensors that are over. partial: the deadline came first, or nobody was left to read from; given_up: \
             the engine went away",
            &pulls.tensors_ended,
        )?;
        page.counter(
            "kvferry_agent_tensors_total",
            "Tensors that were complete at the end of their pulls, those that were here before included",
            pulls.tensors_here.get(),
        )
    }

    /// Who is let in here, and whether we are elsewhere.
    fn tickets(&self, page: &mut Page<'_>) -> fmt::Result {
        let (gate, wallet) = (
            self.0.tickets.gate.counters(),
            self.0.tickets.wallet.counters(),
        );
        page.counter(
            "kvferry_agent_readers_admitted_total",
            "Readers' connections and sessions that were let in with a ticket, over any transport",
            gate.admitted.get(),
        )?;
        page.counter(
            "kvferry_agent_readers_renewed_total",
            "Tickets that readers went on with on connections that were there",
            gate.renewed.get(),
        )?;
        page.counters(
            "kvferry_agent_readers_refused_total",
            "Readers turned away, and renewals. absent: whoever it is knows of no tickets; expired, too_long: clocks \
             differ; unknown_key: its coordinators are others, or their key files; bad_signature, bad_proof, other_owner, \
             other_reader, other_namespace: look who it is, the log has the address",
            &gate.refused,
        )?;
        page.counter(
            "kvferry_agent_readers_expired_total",
            "Connections and sessions ended because their ticket expired: their reader did not renew it",
            gate.expired.get(),
        )?;
        page.counter(
            "kvferry_agent_tickets_obtained_total",
            "Tickets that coordinators gave this agent, to read from others",
            wallet.obtained.get(),
        )?;
        page.counter(
            "kvferry_agent_tickets_failed_total",
            "Requests for a ticket that brought none: no coordinator answered, or it gave no right",
            wallet.failed.get(),
        )?;
        page.counters(
            "kvferry_agent_tickets_refused_total",
            "This agent's tickets that owners refused. Each is shown once; a new one is asked for",
            &wallet.refused,
        )
    }

    fn gpus(&self, page: &mut Page<'_>) -> fmt::Result {
        page.counters(
            "kvferry_agent_gpu_staged_bytes_total",
            "Bytes that went through pinned host memory on their way: into GPUs (land), out of them to readers over \
             sockets (serve). What RDMA devices read from GPU memory themselves is not part of it",
            self.0.gpus.staged(),
        )
    }

    /// How peers are reached, in both directions.
    fn ways(&self, page: &mut Page<'_>) -> fmt::Result {
        let (links, served) = (self.0.links.counters(), &self.0.served);
        page.counter(
            "kvferry_agent_served_bytes_total",
            "Bytes sent to other nodes over TCP. Reads through shared memory and RDMA do not involve their owner: \
             nobody counts them here, their readers do",
            served.bytes_sent(),
        )?;
        page.counter(
            "kvferry_agent_served_requests_total",
            "Reads answered over TCP",
            served.requests(),
        )?;
        page.counter(
            "kvferry_agent_links_opened_total",
            "Links opened to peers",
            links.connects(),
        )?;
        page.counter(
            "kvferry_agent_link_failures_total",
            "Tries to open a link that opened none, over any transport",
            links.failures(),
        )?;
        let fallbacks = links.fallbacks_by_way();
        page.counters_of(
            "kvferry_agent_fallbacks_total",
            "Links opened over another transport (to) than the best one that should reach the peer (from), and why \
             that one failed. A slower path than intended: kvferry doctor --peer says more",
            fallbacks.map(|(from, to, reason, count)| {
                let labels = [("from", from), ("to", to), ("reason", reason)];
                (labels, count)
            }),
        )?;
        page.counter(
            "kvferry_agent_link_recoveries_total",
            "Peers reached by a better transport again, after a fallback",
            links.recoveries(),
        )?;
        page.counter(
            "kvferry_agent_links_distrusted_total",
            "Links given up because bytes that came over them were not those that were sealed. Any is one too many: \
             look at that path's hardware",
            links.distrusted(),
        )?;
        let reads = self.0.gpus.reads();
        page.counters_of(
            "kvferry_agent_gpu_reads_total",
            "Reads into GPU memory. straight: a network card writes to the GPU (GPUDirect RDMA); staged: through pinned \
             host memory, as every transport can. Staged where RDMA is used: the log says once, per region, why",
            [("straight", &reads.straight), ("staged", &reads.staged)]
                .map(|(way, count)| ([("way", way)], count.get())),
        )?;
        page.gauge(
            "kvferry_agent_peers_suspect",
            "Peers that did not answer in time, and are tried last until they do",
            self.0.links.suspects() as u64,
        )
    }

    fn sessions(&self, page: &mut Page<'_>) -> fmt::Result {
        let told = self.0.numbers().coordinators;
        let of = |number: fn(&kvferry_proto::pb::CoordinatorLink) -> u64| {
            let links = told.iter();
            links.map(move |link| ([("coordinator", link.address.as_str())], number(link)))
        };
        page.gauges_of(
            "kvferry_agent_session_up",
            "1 while the session with this coordinator is established and not in the middle of an inventory. 0: it \
             does not know what this agent holds",
            of(|link| link.connected.into()),
        )?;
        page.gauges_of(
            "kvferry_agent_session_unacknowledged_deltas",
            "Changes this coordinator has not confirmed, in deltas. Growing: it is slow or away",
            of(|link| link.unacknowledged_deltas),
        )?;
        page.counters_of(
            "kvferry_agent_session_resyncs_total",
            "Full inventories sent to this coordinator",
            of(|link| link.resyncs),
        )
    }
}

/// What is registered, and what is in it.
fn memory(stats: &StoreStats, page: &mut Page<'_>) -> fmt::Result {
    const KINDS: [(&str, bool); 2] = [("pool", true), ("engine", false)];
    const STATES: [&str; 4] = ["free", "reserved", "sealed", "quarantined"];
    let (mut slots, mut bytes, mut pinned) = ([[0; 4]; 2], [[0; 4]; 2], 0);
    for region in &stats.regions {
        let kind = usize::from(!region.region.pool);
        let block_bytes = region.region.namespace.layout.block_bytes();
        let counts = [
            region.free,
            region.reserved,
            region.sealed,
            region.quarantined,
        ];
        for (state, count) in counts.into_iter().enumerate() {
            slots[kind][state] += u64::from(count);
            bytes[kind][state] += u64::from(count) * block_bytes;
        }
        pinned += u64::from(region.pinned);
    }
    let of = |table: [[u64; 4]; 2]| {
        let kinds = KINDS.iter().zip(table);
        kinds.flat_map(|((kind, _), row)| {
            let states = STATES.iter().zip(row);
            states.map(move |(state, count)| ([("kind", *kind), ("state", *state)], count))
        })
    };
    page.gauge(
        "kvferry_agent_regions",
        "Regions that are registered",
        stats.regions.len() as u64,
    )?;
    page.gauges_of(
        "kvferry_agent_slots",
        "Slots of all regions. quarantined: a transport may still write there, so that they are not reused; a few for \
         a short time after a deadline, many for long are lost memory",
        of(slots),
    )?;
    page.gauges_of(
        "kvferry_agent_slots_bytes",
        "The same in bytes. A pool is meant to be full: sealed by the sum of its states is its fill",
        of(bytes),
    )?;
    page.gauge(
        "kvferry_agent_slots_pinned",
        "Sealed slots that are pinned, which are not evicted",
        pinned,
    )?;
    page.gauge(
        "kvferry_agent_pins",
        "Pins that are neither released nor expired",
        stats.pins,
    )?;
    page.counter(
        "kvferry_agent_evictions_total",
        "Blocks a pool gave up to make room. High beside pulled blocks: pools are too small",
        stats.evictions,
    )?;
    page.counter(
        "kvferry_agent_surplus_evictions_total",
        "Of those, blocks that a coordinator had called surplus: others hold as many as the namespace wants. Near the \
         sum: room is made without losing anything",
        stats.surplus_evictions,
    )
}

/// All but the one for tests.
fn proven() -> impl Iterator<Item = TransportKind> {
    let kinds = TransportKind::ALL.iter().copied();
    kinds.filter(|kind| *kind != TransportKind::Sim)
}

fn transport(kind: TransportKind) -> [(&'static str, &'static str); 1] {
    [(TransportKind::NAME, Label::as_str(kind))]
}
