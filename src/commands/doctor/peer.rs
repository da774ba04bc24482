//! Every way to one peer, tried.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use kvferry_agent::transport::{
    ConnectError, PeerTarget, Transport,
    rdma::{Devices, RdmaConfig, RdmaTransport},
    shm::{ShmTransport, host_id},
    tcp::{PayloadTls, TcpConfig, TcpTransport},
};
use kvferry_proto::{
    Incarnation, InvalidMessage, NodeAddresses, NodeId,
    pb::{IdentifyRequest, peer_client::PeerClient},
};
use kvferry_security::{ticket::Refusal, tls::Dialer};
use tonic::transport::Endpoint;

use super::{Finding, State};
use crate::cli::DoctorArgs;

/// Until the peer has said who it is.
const IDENTIFY_BOUND: Duration = Duration::from_secs(3);
/// How the doctor calls itself towards a peer.
const FROM: &str = "doctor";

/// What was found, and the way that `auto` would choose.
pub(super) async fn look(address: SocketAddr, args: &DoctorArgs) -> (Vec<Finding>, Option<String>) {
    let what = format!("peer {address}");
    let dialer = match Dialer::open(&args.known.secured()) {
        Ok(dialer) => dialer,
        Err(error) => {
            let fix = "give files that go together: --tls-ca, --tls-cert, --tls-key";
            let finding = Finding::new(what, State::Wrong, error.to_string(), fix);
            return (vec![finding], None);
        }
    };
    let peer = match identify(address, &dialer, args.peer_name.as_deref()).await {
        Ok(peer) => peer,
        Err(why) => {
            let fix = "give --peer the address of an agent's listen_peer, and look whether it runs and a firewall lets it through";
            return (
                vec![Finding::new(what, State::Wrong, why.to_string(), fix)],
                None,
            );
        }
    };
    let mut findings = vec![Finding::ok(what, format!("is node {}", peer.node))];
    let (mut auto, mut with_checksums) = (None, None);
    for transport in transports(args, &dialer, &mut findings) {
        let kind = transport.kind().as_str();
        let what = format!("{} over {kind}", peer.node);
        if !transport.reaches(&peer) {
            let why = match kind {
                "shm" => "it is on another host, or in another container",
                "rdma" => "it says that it has no RDMA",
                _ => "it says that it has none",
            };
            findings.push(Finding::new(what, State::Note, why, ""));
            continue;
        }
        match transport.connect(&peer).await {
            Ok(_) if transport.needs_checksum() => {
                findings.push(Finding::new(
                    what,
                    State::Note,
                    "connected, by a software device",
                    "what comes over it is only taken with checksums: give namespaces the checksum policy `always`, or they are read another way",
                ));
                with_checksums.get_or_insert(kind);
            }
            Ok(_) => {
                findings.push(Finding::ok(what, "connected"));
                auto.get_or_insert(kind);
            }
            // It is there: this command has no ticket to show, and is told so.
            Err(ConnectError::TicketRefused {
                refusal: Refusal::Absent,
                ..
            }) => {
                findings.push(Finding::new(
                    what,
                    State::Note,
                    "it answers, and lets readers in with a ticket only",
                    "agents of its cluster get one from their coordinator",
                ));
                auto.get_or_insert(kind);
            }
            Err(error) => {
                findings.push(Finding::new(what, State::Wrong, error.to_string(), ""));
            }
        }
    }
    let auto = match (with_checksums, auto) {
        // Before anything that is further down the list of preference.
        (Some(rdma), Some(other)) if other != "shm" => Some(format!(
            "{rdma} where all blocks have checksums, else {other}"
        )),
        (Some(rdma), None) => Some(format!("{rdma} where all blocks have checksums")),
        (_, other) => other.map(str::to_owned),
    };
    (findings, auto)
}

/// In order of preference.
fn transports(
    args: &DoctorArgs,
    dialer: &Dialer,
    findings: &mut Vec<Finding>,
) -> Vec<Arc<dyn Transport>> {
    let mut all: Vec<Arc<dyn Transport>> = vec![Arc::new(ShmTransport::new(&host_id()))];
    let devices = Devices::open(RdmaConfig {
        nics: args.nics.clone(),
        gid_index: args.gid_index,
        ..RdmaConfig::default()
    });
    match devices {
        Ok(devices) => all.push(Arc::new(
            RdmaTransport::new(devices, FROM, None).dialing(dialer.clone()),
        )),
        Err(why) => findings.push(Finding::new(
            "RDMA from here",
            State::Note,
            why.to_string(),
            "",
        )),
    }
    let tcp = TcpTransport::new(TcpConfig::default());
    all.push(Arc::new(
        tcp.with_tls(PayloadTls::new(dialer.clone(), false)),
    ));
    all
}

/// Why a peer has not said who it is.
#[derive(Debug, thiserror::Error)]
enum IdentifyError {
    /// Nobody answers there, or not in a way that is understood.
    #[error("{}", root(.0))]
    Dial(#[from] tonic::transport::Error),
    /// It answers that it will not.
    #[error("{}", .0.message())]
    Refused(#[from] tonic::Status),
    /// What it says cannot be.
    #[error(transparent)]
    Malformed(#[from] InvalidMessage),
}

/// What lies beneath all: tonic's own words say that something went wrong, and no more.
fn root<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last
}

async fn identify(
    address: SocketAddr,
    dialer: &Dialer,
    name: Option<&str>,
) -> Result<PeerTarget, IdentifyError> {
    let endpoint = Endpoint::from_shared(format!("{}://{address}", dialer.scheme()))?;
    let endpoint = endpoint
        .connect_timeout(IDENTIFY_BOUND)
        .timeout(IDENTIFY_BOUND);
    let channel = dialer.connect_as(&endpoint, name).await?;
    let request = IdentifyRequest {
        from_node: FROM.to_owned(),
    };
    let answer = PeerClient::new(channel).identify(request).await?;
    let answer = answer.into_inner();
    let addresses = answer.addresses.unwrap_or_default();
    Ok(PeerTarget {
        node: NodeId::new(&answer.node).map_err(InvalidMessage::from)?,
        incarnation: Incarnation::new(answer.incarnation).map_err(InvalidMessage::from)?,
        addresses: NodeAddresses::try_from(addresses)?,
    })
}
