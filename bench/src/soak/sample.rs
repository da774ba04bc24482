//! The coordinator's memory and its own gauges, at one moment.

use std::{fs, net::SocketAddr};

use kvferry_observe::read_page;
use kvferry_proto::pb::{
    self, claims_client::ClaimsClient, locations_client::LocationsClient,
    replication_client::ReplicationClient,
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tonic::transport::Channel;

use super::server::Target;
use crate::{BenchError, locate::connect, memory, workload::NAMESPACE};

/// One look.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds since the first look was prepared.
    pub at_s: f64,
    /// Resident memory of its process.
    pub resident_bytes: u64,
    /// Files and sockets it has open.
    pub files: u64,
    /// Distinct blocks.
    pub blocks: u64,
    /// Copies of them.
    pub copies: u64,
    /// Nodes, hidden ones included.
    pub nodes: u64,
    /// Of those: hidden.
    pub hidden: u64,
    /// Open sessions.
    pub sessions: u64,
    /// Namespaces.
    pub namespaces: u64,
    /// Claims held.
    pub claims: u64,
    /// Blocks with a location.
    pub locations: u64,
    /// Blocks wished copies of.
    pub wishes: u64,
    /// Orders of copies under way.
    pub orders: u64,
}

impl Sample {
    /// Is nothing left but the namespace?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let left = [
            self.blocks,
            self.copies,
            self.nodes,
            self.sessions,
            self.claims,
            self.locations,
            self.wishes,
            self.orders,
        ];
        left == [0; 8] && self.namespaces == 1
    }
}

/// Takes samples.
#[derive(Debug)]
pub(super) struct Probe {
    since: Instant,
    pid: u32,
    metrics: SocketAddr,
    claims: ClaimsClient<Channel>,
    locations: LocationsClient<Channel>,
    replication: ReplicationClient<Channel>,
}

impl Probe {
    pub(super) async fn new(target: &Target) -> Result<Self, BenchError> {
        let channel = connect(&target.url).await?;
        Ok(Self {
            since: Instant::now(),
            pid: target.pid,
            metrics: target.metrics,
            claims: ClaimsClient::new(channel.clone()),
            locations: LocationsClient::new(channel.clone()),
            replication: ReplicationClient::new(channel),
        })
    }

    pub(super) async fn look(&mut self) -> Result<Sample, BenchError> {
        let (status, page) = read_page(self.metrics, "/metrics").await?;
        if status != 200 {
            return Err(BenchError::Wrong(format!("/metrics answers {status}")));
        }
        let namespace = || NAMESPACE.to_owned();
        let claims = pb::ListClaimsRequest {
            namespace: namespace(),
        };
        let claims = self.claims.list_claims(claims).await?.into_inner();
        let policy = pb::GetNamespacePolicyRequest {
            namespace: namespace(),
        };
        let policy = self.locations.get_namespace_policy(policy).await?;
        let copies = pb::DescribeCopiesRequest {
            namespace: namespace(),
        };
        let copies = self.replication.describe_copies(copies).await?.into_inner();
        Ok(Sample {
            at_s: self.since.elapsed().as_secs_f64(),
            resident_bytes: memory::resident_bytes_of(self.pid),
            files: open_files(self.pid),
            blocks: gauge(&page, "blocks")?,
            copies: gauge(&page, "copies")?,
            nodes: gauge(&page, "nodes")?,
            hidden: gauge(&page, "nodes_hidden")?,
            sessions: gauge(&page, "sessions")?,
            namespaces: gauge(&page, "namespaces")?,
            claims: claims.claims,
            locations: policy.into_inner().locations,
            wishes: copies.hot,
            orders: copies.in_flight.into(),
        })
    }
}

/// Zero when the process is gone.
fn open_files(pid: u32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |files| files.count() as u64)
}

/// A gauge of the coordinator, summed over its labels.
fn gauge(page: &str, name: &str) -> Result<u64, BenchError> {
    let name = format!("kvferry_coordinator_{name}");
    let of_it = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(&name)?;
        let value = match rest.strip_prefix('{') {
            Some(labelled) => labelled.split_once("} ")?.1,
            None => rest.strip_prefix(' ')?,
        };
        value.parse::<u64>().ok()
    });
    let all: Vec<u64> = of_it.collect();
    match all.is_empty() {
        true => Err(BenchError::Wrong(format!("no {name} in the metrics"))),
        false => Ok(all.iter().sum()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gauges_are_summed_over_labels_and_told_from_longer_names() {
        let page = "# TYPE kvferry_coordinator_blocks gauge\n\
                    kvferry_coordinator_blocks{replicas=\"1\"} 3\n\
                    kvferry_coordinator_blocks{replicas=\"2\"} 4\n\
                    kvferry_coordinator_nodes_hidden 5\nkvferry_coordinator_nodes 6\n";
        assert_eq!(gauge(page, "blocks").unwrap(), 7);
        assert_eq!(gauge(page, "nodes").unwrap(), 6);
        assert!(gauge(page, "sessions").is_err(), "absent is not zero");
    }
}
