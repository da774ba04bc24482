//! Connecting queue pairs to an owner, and proving that they reach it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use kvferry_ibverbs::{ConnectOptions, Init, QueuePair, ReadyToSend, RemoteKey, RemotePiece};
use kvferry_proto::{Incarnation, pb};
use tokio::{
    sync::oneshot,
    task::{JoinSet, spawn_blocking},
    time::timeout,
};

use super::{
    config::{MAX_ENDPOINTS, PROBE_BOUND},
    device::{Device, Devices},
    lanes::Lane,
    owner_client::{OwnerClient, no_path},
    poller::token,
    wire::{endpoint_message, parse_endpoint, parse_memory},
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
    let mut reasons = Vec::new();
    let offered = {
        let (devices, which) = (Arc::clone(devices), which.to_vec());
        let made = spawn_blocking(move || offer(&devices, &which)).await;
        let (offered, problems) = made.map_err(|e| no_path(&peer.node, &e.to_string()))?;
        reasons.extend(problems);
        offered
    };
    if offered.is_empty() {
        return Err(no_path(&peer.node, &reasons.join("; ")));
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
            Ok::<_, String>(Lane::new(id, device, answer.device, pair))
        });
    }
    let mut lanes = Vec::new();
    while let Some(proof) = proofs.join_next().await {
        match proof {
            Ok(Ok(lane)) => lanes.push(lane),
            Ok(Err(reason)) => reasons.push(reason),
            Err(error) => reasons.push(error.to_string()),
        }
    }
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

type Offered = Vec<(Arc<Device>, QueuePair<Init>)>;

/// Queue pairs that know their port, and why there are no others.
fn offer(devices: &Devices, which: &[usize]) -> (Offered, Vec<String>) {
    let (mut offered, mut problems) = (Offered::new(), Vec::new());
    for device in which.iter().filter_map(|index| devices.list.get(*index)) {
        let address = match device.address() {
            Ok(address) => address,
            Err(error) => {
                problems.push(error.to_string());
                continue;
            }
        };
        for _ in 0..devices.config.qps_per_peer {
            if offered.len() == MAX_ENDPOINTS {
                break;
            }
            let made = device.reading_pair().map_err(|e| e.to_string());
            match made.and_then(|pair| pair.bind(&address).map_err(|e| e.to_string())) {
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
) -> Result<(QueuePair<ReadyToSend>, RemoteKey), String> {
    if !answer.refused.is_empty() {
        return Err(format!("the owner refuses: {}", answer.refused));
    }
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let endpoint = answer
        .endpoint
        .as_ref()
        .ok_or("the owner names no endpoint")?;
    if endpoint.software && !checksummed {
        return Err(
            "the owner's device is software: a card's link takes bytes without checksums"
                .to_owned(),
        );
    }
    let endpoint = parse_endpoint(endpoint).map_err(|e| text(&e))?;
    let probe = parse_memory(answer.probe.as_ref()).map_err(|e| text(&e))?;
    let connected = pair
        .connect(&endpoint, &ConnectOptions::default())
        .map_err(|e| text(&e))?;
    Ok((connected.ready().map_err(|e| text(&e))?, probe))
}

/// Reads the owner's incarnation over the queue pair: what answers is the process that was meant.
async fn prove(
    devices: &Devices,
    device: &Device,
    pair: &QueuePair<ReadyToSend>,
    probe: RemoteKey,
    expected: Incarnation,
) -> Result<(), String> {
    let place = devices
        .locals
        .scratch(PROBE_BYTES)
        .ok_or("too many small reads are under way")?;
    let range = place.range(PROBE_BYTES);
    let region = place.local().regions.get(device.index);
    let piece = region
        .and_then(Option::as_ref)
        .and_then(|region| region.piece(range.clone()))
        .ok_or("the scratch is not registered")?;
    let number = devices.next_number();
    let (sender, ended) = oneshot::channel();
    devices.probes.insert(number, sender);
    let from = RemotePiece {
        address: probe.address,
        rkey: probe.rkey,
    };
    let mut chain = pair.chain();
    chain
        .push(token(0, number), from, [piece])
        .map_err(|e| e.to_string())?;
    device.in_flight.fetch_add(1, Ordering::Relaxed);
    let posted = pair.post(&mut chain).map_err(|e| e.to_string());
    let result = match posted {
        Ok(_) => timeout(PROBE_BOUND, ended)
            .await
            .map_err(|_| "the owner's device does not answer".to_owned()),
        Err(error) => Err(error),
    };
    device.in_flight.fetch_sub(1, Ordering::Relaxed);
    match result {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => {
            if error == kvferry_ibverbs::WorkError::Unsettled {
                lose(place);
            }
            return Err(error.to_string());
        }
        Ok(Err(_)) => return Err("the completion thread has ended".to_owned()),
        Err(why) => {
            lose(place);
            devices.probes.remove(&number);
            return Err(why);
        }
    }
    let found = place.memory().and_then(|m| m.load_word(range.start).ok());
    match found {
        Some(found) if found == expected.get() => Ok(()),
        _ => Err("another process answers at the owner's address".to_owned()),
    }
}

/// A place that a device may still write to: nobody may get it again.
#[allow(clippy::disallowed_methods)]
fn lose(place: super::memory::Place) {
    std::mem::forget(place);
}
