//! Connecting queue pairs to an owner, and proving that they reach it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use kvferry_ibverbs::{
    ChainError, ConnectOptions, Init, PairError, PortAddressError, PostError, QueuePair,
    ReadyToSend, RemoteKey, RemotePiece, WorkError,
};
use kvferry_proto::{Incarnation, pb};
use tokio::{
    sync::oneshot,
    task::{JoinError, JoinSet, spawn_blocking},
    time::timeout,
};

use super::{
    config::{MAX_ENDPOINTS, PROBE_BOUND},
    device::Device,
    devices::{Devices, told},
    lane::Lane,
    owner_client::{OwnerClient, no_path},
    poller::token,
    wire::{BadMessage, endpoint_message, parse_endpoint, parse_memory},
};
use crate::transport::{ConnectError, PeerTarget};

/// Numbers lanes for the life of the program.
static NEXT_LANE: AtomicU64 = AtomicU64::new(1);

/// Bytes of the word that proves a path.
const PROBE_BYTES: u64 = 8;

/// Connected queue pairs on these devices of ours, at least one; each has read the owner's incarnation.
///
/// # Errors
/// [`ConnectError`]; [`ConnectError::NoPath`] where no device could be used on one side or the other.
pub(super) async fn lanes(
    devices: &Arc<Devices>,
    client: &OwnerClient,
    peer: &PeerTarget,
    which: &[usize],
) -> Result<Vec<Lane>, ConnectError> {
    let mut reasons: Vec<LaneError> = Vec::new();
    let offered = {
        let (devices, which) = (Arc::clone(devices), which.to_vec());
        let made = spawn_blocking(move || offer(&devices, &which)).await;
        let (offered, problems) = made.map_err(|e| no_path(&peer.node, &e.to_string()))?;
        reasons.extend(problems);
        offered
    };
    if offered.is_empty() {
        return Err(no_path(&peer.node, &told(&reasons)));
    }
    let endpoints = offered
        .iter()
        .map(|(device, pair)| endpoint_message(&pair.endpoint(), device));
    let answers = client.connect_pairs(peer, endpoints.collect()).await?;
    let mut proofs = JoinSet::new();
    for ((device, pair), answer) in offered.into_iter().zip(answers) {
        let (devices, expected) = (Arc::clone(devices), peer.incarnation);
        proofs.spawn(async move {
            let (pair, probe) = accept(pair, &answer, devices.need_checksums())?;
            prove(&devices, &device, &pair, probe, expected).await?;
            let id = NEXT_LANE.fetch_add(1, Ordering::Relaxed);
            Ok::<_, LaneError>(Lane::new(id, device, answer.device, pair))
        });
    }
    let mut lanes = Vec::new();
    while let Some(proof) = proofs.join_next().await {
        match proof {
            Ok(Ok(lane)) => lanes.push(lane),
            Ok(Err(reason)) => reasons.push(reason),
            Err(error) => reasons.push(error.into()),
        }
    }
    let mut reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
    reasons.sort();
    reasons.dedup();
    if lanes.is_empty() {
        return Err(no_path(&peer.node, &reasons.join("; ")));
    }
    for reason in reasons {
        tracing::debug!(node = %peer.node, "a queue pair is not connected: {reason}");
    }
    Ok(lanes)
}

/// Why a queue pair is not connected; others may be.
#[derive(Debug, thiserror::Error)]
enum LaneError {
    /// Our port has no address now.
    #[error(transparent)]
    Address(#[from] PortAddressError),
    /// Our device has no room for another.
    #[error(transparent)]
    Pair(#[from] PairError),
    /// The two do not fit.
    #[error(transparent)]
    Connect(#[from] kvferry_ibverbs::ConnectError),
    /// The owner says why not.
    #[error("the owner refuses: {0}")]
    Refused(String),
    /// The owner's answer makes no sense.
    #[error("the owner's answer makes no sense: {0}")]
    Nonsense(#[from] BadMessage),
    /// The owner's device needs checksums, and our links are for all blocks.
    #[error(
        "the owner's device is software, and from a card's link bytes are taken without checksums"
    )]
    Software,
    /// Try again when fewer small reads are under way.
    #[error("too many small reads are under way")]
    NoScratch,
    /// The probe is not a READ that can be.
    #[error(transparent)]
    Probe(#[from] ChainError),
    /// The READ that proves the path could not be posted.
    #[error(transparent)]
    Post(#[from] PostError),
    /// It was, and failed.
    #[error(transparent)]
    Failed(#[from] WorkError),
    /// It was, and nothing came.
    #[error("the owner's device does not answer")]
    Silent,
    /// It works, and leads to somebody else.
    #[error("another process answers at the owner's address")]
    OtherProcess,
    /// The device is gone.
    #[error("the completion thread has ended")]
    NoCompletions,
    /// The program ends.
    #[error("not tried to the end: {0}")]
    Task(#[from] JoinError),
}

type Offered = Vec<(Arc<Device>, QueuePair<Init>)>;

/// Queue pairs that know their port, and why there are no others.
fn offer(devices: &Devices, which: &[usize]) -> (Offered, Vec<LaneError>) {
    let (mut offered, mut problems) = (Offered::new(), Vec::new());
    for device in which.iter().filter_map(|index| devices.list.get(*index)) {
        let address = match device.address() {
            Ok(address) => address,
            Err(error) => {
                problems.push(error.into());
                continue;
            }
        };
        for _ in 0..devices.config.qps_per_peer {
            if offered.len() == MAX_ENDPOINTS {
                break;
            }
            let made = device.reading_pair().map_err(LaneError::from);
            match made.and_then(|pair| Ok(pair.bind(&address)?)) {
                Ok(pair) => offered.push((Arc::clone(device), pair)),
                Err(problem) => problems.push(problem),
            }
        }
    }
    (offered, problems)
}

fn accept(
    pair: QueuePair<Init>,
    answer: &pb::RdmaLane,
    checksummed: bool,
) -> Result<(QueuePair<ReadyToSend>, RemoteKey), LaneError> {
    if !answer.refused.is_empty() {
        return Err(LaneError::Refused(answer.refused.clone()));
    }
    let endpoint = answer.endpoint.as_ref().ok_or(BadMessage("no endpoint"))?;
    if endpoint.software && !checksummed {
        return Err(LaneError::Software);
    }
    let endpoint = parse_endpoint(endpoint)?;
    let probe = parse_memory(answer.probe.as_ref())?;
    let connected = pair.connect(&endpoint, &ConnectOptions::default())?;
    Ok((connected.ready()?, probe))
}

/// Reads the owner's incarnation over the queue pair: what answers is the process that was meant.
async fn prove(
    devices: &Devices,
    device: &Device,
    pair: &QueuePair<ReadyToSend>,
    probe: RemoteKey,
    expected: Incarnation,
) -> Result<(), LaneError> {
    let place = devices
        .locals
        .scratch(PROBE_BYTES)
        .ok_or(LaneError::NoScratch)?;
    let range = place.range(PROBE_BYTES);
    let region = place.local().regions.get(device.index);
    let piece = region
        .and_then(Option::as_ref)
        .and_then(|region| region.piece(range.clone()))
        // Devices that did not register it are not in the list.
        .ok_or(LaneError::NoScratch)?;
    let number = devices.next_number();
    let (sender, ended) = oneshot::channel();
    devices.probes.insert(number, sender);
    let from = RemotePiece {
        address: probe.address,
        rkey: probe.rkey,
    };
    let mut chain = pair.chain();
    chain.push(token(0, number), from, [piece])?;
    device.in_flight.fetch_add(1, Ordering::Relaxed);
    let result = match pair.post(&mut chain) {
        Ok(_) => timeout(PROBE_BOUND, ended)
            .await
            .map_err(|_| LaneError::Silent),
        Err(error) => Err(error.into()),
    };
    device.in_flight.fetch_sub(1, Ordering::Relaxed);
    match result {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => {
            if error == WorkError::Unsettled {
                lose(place);
            }
            return Err(error.into());
        }
        Ok(Err(_)) => return Err(LaneError::NoCompletions),
        Err(why) => {
            lose(place);
            devices.probes.remove(&number);
            return Err(why);
        }
    }
    let found = place.memory().load_word(range.start).ok();
    match found {
        Some(found) if found == expected.get() => Ok(()),
        _ => Err(LaneError::OtherProcess),
    }
}

/// A place that a device may still write to: nobody may get it again.
#[allow(clippy::disallowed_methods)]
fn lose(place: super::memory::Place) {
    std::mem::forget(place);
}
