//! Keeps a coordinator in step with what this agent publishes: it is told everything, light, again and
//! again, and what it does not know is published to it in full. So a coordinator that lost everything
//! has it back with the first announcement after its agents' sessions are up.

use std::time::Duration;

use bytes::Bytes;
use kvferry_proto::pb;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};
use tracing::{info, warn};

use super::{
    LocalApi,
    registry::{Set, Standing},
};
use crate::coordinators::describe;

/// How often everything is announced although nothing changed: how late a coordinator is healed, and
/// memory that is written to is noticed.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(2);
/// How soon it is tried again while something is not confirmed.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// One call to the coordinator; a publication in full is some megabytes.
const CALL_BOUND: Duration = Duration::from_secs(10);
/// Bytes of descriptors in one message, of 8 MiB.
const MESSAGE_BYTES: usize = 1 << 20;

/// Announces to one coordinator until told to stop.
pub(crate) async fn keep_announced(api: LocalApi, coordinator: usize, stop: CancellationToken) {
    let keeper = Keeper { api, coordinator };
    tokio::select! {
        // First: after it nothing more is told, whatever woke this.
        biased;
        () = stop.cancelled() => {}
        () = keeper.run() => {}
    }
}

struct Keeper {
    api: LocalApi,
    coordinator: usize,
}

/// What an announcement left to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// Everything is as it should be there.
    All,
    /// Chunks of some set are not listed yet.
    InPart,
}

impl Keeper {
    async fn run(&self) {
        let Some(mut session) = self.api.sessions.get(self.coordinator).cloned() else {
            return;
        };
        let mut changed = self.api.tensors.watch();
        let mut regions = self.api.store.catalog().changes();
        // Nothing was ever announced: there is nothing to take back either.
        let mut spoken = false;
        let mut trouble = String::new();
        loop {
            let connected = session.borrow_and_update().connected;
            changed.mark_unchanged();
            regions.mark_unchanged();
            self.api.tensors.reap(&self.api.store);
            let (sets, revision) = self.api.tensors.all();
            spoken |= !sets.is_empty();
            let mut wait = ANNOUNCE_EVERY;
            if connected && spoken {
                match self.announce(sets).await {
                    Ok(told) => {
                        trouble.clear();
                        match told {
                            Told::All => self.api.tensors.confirm(self.coordinator, revision),
                            Told::InPart => wait = TRY_AGAIN,
                        }
                    }
                    Err(status) => {
                        let detail = describe(&status);
                        if detail != trouble {
                            warn!("sources are not announced: {detail}");
                            trouble = detail;
                        }
                        wait = TRY_AGAIN * 5;
                    }
                }
            } else if !spoken {
                self.api.tensors.confirm(self.coordinator, revision);
            }
            tokio::select! {
                () = sleep(wait) => {}
                gone = changed.changed() => if gone.is_err() { return },
                gone = regions.changed() => if gone.is_err() { return },
                () = flips(&mut session, connected) => {}
            }
        }
    }

    async fn announce(&self, sets: Vec<Set>) -> Result<Told, Status> {
        let mut told = Told::All;
        let (mut live, mut workers) = (Vec::new(), Vec::new());
        for set in sets {
            let store = std::sync::Arc::clone(&self.api.store);
            // Looks at every chunk's slot.
            let looked = tokio::task::spawn_blocking(move || (set.standing(&store), set)).await;
            let Ok((standing, set)) = looked else {
                continue;
            };
            let state = match standing {
                // Since the last look: the next one takes it out.
                Standing::Lost => continue,
                Standing::Initialising => pb::SourceState::Initialising,
                Standing::Rewritten => pb::SourceState::Stale,
                // Not ready before the chunks can be found.
                Standing::Ready if !self.lists(&set) => {
                    told = Told::InPart;
                    pb::SourceState::Initialising
                }
                Standing::Ready => pb::SourceState::Ready,
            };
            workers.push(announced(&set, state));
            live.push(set);
        }
        let identity = &self.api.identity;
        let request = pb::AnnounceSourcesRequest {
            node: identity.node.to_string(),
            incarnation: identity.incarnation.get(),
            number: self.api.tensors.next_number(),
            workers: workers.clone(),
        };
        let mut client = self.client()?;
        let answer = bounded(client.announce(request)).await?;
        for index in answer.removed {
            if let Some(set) = live.get(index as usize) {
                self.withdraw(set).await;
            }
        }
        // One that is refused does not keep the others out.
        let mut refused = None;
        for index in answer.unknown {
            if let (Some(set), Some(worker)) =
                (live.get(index as usize), workers.get(index as usize))
                && let Err(status) = self.publish(set, worker.clone()).await
            {
                refused = Some(status);
            }
        }
        refused.map_or(Ok(told), Err)
    }

    async fn publish(&self, set: &Set, worker: pb::AnnouncedWorker) -> Result<(), Status> {
        let identity = &self.api.identity;
        let header = pb::PublishSourceHeader {
            node: identity.node.to_string(),
            incarnation: identity.incarnation.get(),
            number: self.api.tensors.next_number(),
            identity: Some((&*set.identity).into()),
            worker: Some(worker),
            chunk_bytes: set.table.chunk_bytes(),
            chunks: set.table.chunks(),
            tensors: set.table.tensors().len() as u32, // bounded
        };
        let mut messages = vec![pb::PublishSourceRequest {
            header: Some(header),
            tensors: Vec::new(),
        }];
        let mut bytes = 0;
        for tensor in set.table.tensors() {
            bytes += tensor.encoded_bytes();
            if bytes > MESSAGE_BYTES {
                bytes = tensor.encoded_bytes();
                messages.push(pb::PublishSourceRequest::default());
            }
            if let Some(message) = messages.last_mut() {
                message.tensors.push(tensor.into());
            }
        }
        let mut client = self.client()?;
        let request = Request::new(tokio_stream::iter(messages));
        let answer = bounded(client.publish(request)).await?;
        if answer.removed {
            self.withdraw(set).await;
        }
        Ok(())
    }

    async fn withdraw(&self, set: &Set) {
        info!(source = %set.source, rank = set.rank, "removed by an operator: withdrawn");
        self.api
            .withdraw_set(set.name(), Some(set.publication))
            .await;
    }

    /// Does the coordinator list a set's chunks?
    fn lists(&self, set: &Set) -> bool {
        let session = self.api.sessions.get(self.coordinator);
        session.is_some_and(|session| {
            let status = session.borrow();
            let refused = set.regions().any(|it| status.refused.contains(&it));
            status.acknowledged >= set.position && !refused
        })
    }

    #[allow(clippy::result_large_err)] // tonic's signature
    fn client(
        &self,
    ) -> Result<pb::sources_client::SourcesClient<kvferry_security::tls::Line>, Status> {
        let client = self.api.coordinators.sources_of(self.coordinator);
        client.ok_or_else(|| Status::internal("a coordinator that is not configured"))
    }
}

fn announced(set: &Set, state: pb::SourceState) -> pb::AnnouncedWorker {
    pb::AnnouncedWorker {
        source: Bytes::copy_from_slice(set.source.as_bytes()),
        rank: set.rank,
        publication: set.publication,
        digest: Bytes::copy_from_slice(set.table.digest().as_bytes()),
        state: state.into(),
        runs: (&set.runs).into(),
    }
}

async fn bounded<A>(
    call: impl Future<Output = Result<tonic::Response<A>, Status>>,
) -> Result<A, Status> {
    match timeout(CALL_BOUND, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Status::deadline_exceeded("no answer in time")),
    }
}

/// Completes when a session comes up or goes down.
async fn flips(session: &mut watch::Receiver<crate::session::SessionStatus>, connected: bool) {
    if session
        .wait_for(|status| status.connected != connected)
        .await
        .is_err()
    {
        // Its task has ended: so does this one, soon.
        std::future::pending::<()>().await;
    }
}
