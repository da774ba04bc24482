//! `kvferry stats`: what the agent on this host holds and did.

use kvferry_proto::pb;
use serde::Serialize;

use super::tool::ToolError;
use crate::{
    cli::StatsArgs,
    client::{self, Call},
    failure::Done,
    output::{self, OutputError},
    size::ByteSize,
};

#[derive(Debug, Serialize)]
struct Stats {
    node: String,
    incarnation: String,
    regions: Vec<Region>,
    coordinators: Vec<Link>,
    reservations: u64,
    pins: u64,
    pulls_in_flight: u64,
    blocks_pulled: u64,
    bytes_pulled: u64,
    blocks_stale: u64,
    blocks_failed: u64,
    bytes_served: u64,
    peers_suspect: u64,
}

#[derive(Debug, Serialize)]
struct Region {
    region: u32,
    namespace: String,
    pool: bool,
    slots: u32,
    free: u32,
    reserved: u32,
    sealed: u32,
    pinned: u32,
    quarantined: u32,
    evictions: u64,
}

#[derive(Debug, Serialize)]
struct Link {
    address: String,
    connected: bool,
    unacknowledged_deltas: u64,
    resyncs: u64,
    last_error: String,
}

impl From<pb::RegionStats> for Region {
    fn from(stats: pb::RegionStats) -> Self {
        let info = stats.region.unwrap_or_default();
        Self {
            region: info.region,
            namespace: info.namespace,
            pool: info.pool,
            slots: info.geometry.map_or(0, |geometry| geometry.slots),
            free: stats.free,
            reserved: stats.reserved,
            sealed: stats.sealed,
            pinned: stats.pinned,
            quarantined: stats.quarantined,
            evictions: stats.evictions,
        }
    }
}

impl From<pb::CoordinatorLink> for Link {
    fn from(link: pb::CoordinatorLink) -> Self {
        Self {
            address: link.address,
            connected: link.connected,
            unacknowledged_deltas: link.unacknowledged_deltas,
            resyncs: link.resyncs,
            last_error: link.last_error,
        }
    }
}

impl From<pb::StatsResponse> for Stats {
    fn from(stats: pb::StatsResponse) -> Self {
        Self {
            node: stats.node,
            incarnation: format!("{:x}", stats.incarnation),
            regions: stats.regions.into_iter().map(Region::from).collect(),
            coordinators: stats.coordinators.into_iter().map(Link::from).collect(),
            reservations: stats.reservations,
            pins: stats.pins,
            pulls_in_flight: stats.pulls_in_flight,
            blocks_pulled: stats.blocks_pulled,
            bytes_pulled: stats.bytes_pulled,
            blocks_stale: stats.blocks_stale,
            blocks_failed: stats.blocks_failed,
            bytes_served: stats.bytes_served,
            peers_suspect: stats.peers_suspect,
        }
    }
}

pub(crate) async fn run(args: StatsArgs) -> Result<Done, ToolError> {
    let mut agent = client::agent(&args.reach.socket()).await?;
    let answer = Call::agent("show its counters", args.reach.bound())
        .answer(agent.stats(pb::StatsRequest {}))
        .await?;
    let stats = Stats::from(answer);
    match args.json {
        true => output::json(&stats)?,
        false => print(stats)?,
    }
    Ok(Done::All)
}

fn print(stats: Stats) -> Result<(), OutputError> {
    output::facts([
        ("node", stats.node),
        ("incarnation", stats.incarnation),
        (
            "pulled",
            format!(
                "{} blocks, {}",
                stats.blocks_pulled,
                ByteSize(stats.bytes_pulled)
            ),
        ),
        ("served", ByteSize(stats.bytes_served).to_string()),
        ("stale", stats.blocks_stale.to_string()),
        ("failed", stats.blocks_failed.to_string()),
        ("pulls now", stats.pulls_in_flight.to_string()),
        ("reserved", stats.reservations.to_string()),
        ("pins", stats.pins.to_string()),
        ("suspects", stats.peers_suspect.to_string()),
    ])?;
    let region = |region: Region| {
        [
            region.region.to_string(),
            region.namespace,
            if region.pool { "pool" } else { "engine" }.to_owned(),
            region.slots.to_string(),
            region.sealed.to_string(),
            region.free.to_string(),
            region.reserved.to_string(),
            region.pinned.to_string(),
            region.evictions.to_string(),
        ]
    };
    output::line("")?;
    output::rows(
        [
            "region",
            "namespace",
            "kind",
            "slots",
            "sealed",
            "free",
            "reserved",
            "pinned",
            "evictions",
        ],
        stats.regions.into_iter().map(region).collect(),
        "no regions",
    )?;
    let link = |link: Link| {
        [
            link.address,
            if link.connected { "connected" } else { "away" }.to_owned(),
            link.unacknowledged_deltas.to_string(),
            link.resyncs.to_string(),
            link.last_error,
        ]
    };
    output::line("")?;
    output::rows(
        [
            "coordinator",
            "session",
            "unconfirmed",
            "resyncs",
            "last error",
        ],
        stats.coordinators.into_iter().map(link).collect(),
        "no coordinators",
    )
}
