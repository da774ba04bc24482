//! An agent's side of a session, by hand.

use kvferry_proto::pb::{
    self, agent_message::Message as Said, coordinator_message::Message as Told,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{Running, packed, soon, spec};

pub(crate) struct Agent {
    to: mpsc::Sender<pb::AgentMessage>,
    from: Streaming<pb::CoordinatorMessage>,
}

pub(crate) fn hello(name: &str, incarnation: u64) -> pb::Hello {
    pb::Hello {
        node: name.into(),
        incarnation,
        oldest_delta: 1,
        next_delta: 1,
        ..pb::Hello::default()
    }
}

pub(crate) fn region(tokens_per_block: u32) -> pb::RegionDeclaration {
    pb::RegionDeclaration {
        region: 1,
        namespace: Some(spec(tokens_per_block)),
        geometry: Some(pb::Geometry {
            slots: 16,
            planes: vec![pb::Plane {
                base: 0,
                stride: 64,
                len: 64,
            }],
        }),
    }
}

/// Hash i lies in slot i, generation 2.
pub(crate) fn sealed(hashes: &[u64]) -> pb::RegionChange {
    pb::RegionChange {
        region: 1,
        removed_slots: Vec::new(),
        added: Some(pb::SealedSlots {
            hashes: Some(packed(hashes)),
            slots: hashes.iter().map(|hash| *hash as u32).collect(),
            generations: vec![2; hashes.len()],
            checksums: Vec::new(),
        }),
    }
}

impl Agent {
    /// Opens a session and says hello.
    pub(crate) async fn open(running: &mut Running, hello: pb::Hello) -> Self {
        let mut agent = Self::open_silent(running).await;
        agent.say(Said::Hello(hello)).await;
        agent
    }

    pub(crate) async fn open_silent(running: &mut Running) -> Self {
        let (to, outgoing) = mpsc::channel(16);
        let stream = ReceiverStream::new(outgoing);
        let from = soon(running.client.session(stream)).await.unwrap();
        Self {
            to,
            from: from.into_inner(),
        }
    }

    /// In sync, with region 1 and these blocks.
    pub(crate) async fn join(running: &mut Running, name: &str, hashes: &[u64]) -> Self {
        let mut agent = Self::open(running, hello(name, 1)).await;
        assert!(agent.welcome().await.resync);
        agent
            .inventory(0, vec![region(16)], vec![sealed(hashes)])
            .await;
        assert_eq!(agent.hear().await, Told::Ack(pb::Ack { seq: 0 }));
        agent
    }

    pub(crate) async fn say(&mut self, message: Said) {
        let message = pb::AgentMessage {
            message: Some(message),
        };
        // A session the coordinator ended takes no more; the test looks at what it hears.
        self.to.send(message).await.ok();
    }

    pub(crate) async fn inventory(
        &mut self,
        seq: u64,
        regions: Vec<pb::RegionDeclaration>,
        sealed: Vec<pb::RegionChange>,
    ) {
        let inventory = pb::Inventory {
            seq,
            first: true,
            last: true,
            regions,
            sealed,
        };
        self.say(Said::Inventory(inventory)).await;
    }

    pub(crate) async fn delta(&mut self, seq: u64, change: pb::RegionChange) {
        let delta = pb::Delta {
            seq,
            changes: vec![change],
            ..pb::Delta::default()
        };
        self.say(Said::Delta(delta)).await;
    }

    pub(crate) async fn hear(&mut self) -> Told {
        let message = soon(self.from.message()).await.unwrap().unwrap();
        message.message.unwrap()
    }

    pub(crate) async fn welcome(&mut self) -> pb::Welcome {
        match self.hear().await {
            Told::Welcome(welcome) => welcome,
            other => panic!("{other:?} is no welcome"),
        }
    }

    /// The end of the stream; what came before is passed over.
    pub(crate) async fn end(&mut self) -> Result<(), Status> {
        soon(async {
            while self.from.message().await?.is_some() {}
            Ok(())
        })
        .await
    }
}
