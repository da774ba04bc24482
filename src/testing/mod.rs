//! A coordinator and agents that fit in a test: they keep blocks in one shared table, and serve
//! what the tools and the demo ask for over the real protocol.

mod agent;
mod coordinator;

use std::{
    collections::{HashMap, HashSet},
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kvferry_proto::pb;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::Server;

/// What all fakes of one test know.
#[derive(Clone, Default)]
pub(crate) struct World(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    namespaces: HashMap<String, pb::NamespaceSpec>,
    blocks: HashMap<Vec<u8>, Vec<Copy>>,
    dead: HashSet<String>,
    /// Deliver one wrong byte in every block.
    spoil: bool,
}

/// One copy of a block.
#[derive(Clone)]
struct Copy {
    node: String,
    region: u32,
    bytes: CopyBytes,
}

#[derive(Clone)]
enum CopyBytes {
    Value(Vec<u8>),
    Slot(Arc<Region>, u32),
}

/// An engine's memory, by its file.
struct Region {
    file: File,
    planes: Vec<pb::Plane>,
}

impl Region {
    fn open(path: &str, planes: Vec<pb::Plane>) -> Self {
        let file = OpenOptions::new().read(true).write(true).open(path);
        Self {
            file: file.unwrap(),
            planes,
        }
    }

    fn read(&self, slot: u32) -> Vec<u8> {
        let mut block = Vec::new();
        for plane in &self.planes {
            let mut piece = vec![0; plane.len as usize];
            let at = plane.base + u64::from(slot) * plane.stride;
            self.file.read_exact_at(&mut piece, at).unwrap();
            block.extend(piece);
        }
        block
    }

    fn write(&self, slot: u32, mut block: &[u8]) {
        for plane in &self.planes {
            let (piece, rest) = block.split_at(plane.len as usize);
            let at = plane.base + u64::from(slot) * plane.stride;
            self.file.write_all_at(piece, at).unwrap();
            block = rest;
        }
    }
}

impl Copy {
    fn read(&self) -> Vec<u8> {
        match &self.bytes {
            CopyBytes::Value(bytes) => bytes.clone(),
            CopyBytes::Slot(region, slot) => region.read(*slot),
        }
    }
}

impl World {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on every block that is moved has a wrong byte.
    pub(crate) fn spoil(&self) {
        self.state().spoil = true;
    }

    /// The node's memory can be read no more; the directory still lists it.
    pub(crate) fn kill(&self, node: &str) {
        self.state().dead.insert(node.to_owned());
    }

    /// Nobody holds this block any more.
    pub(crate) fn forget(&self, hash: &[u8]) {
        self.state().blocks.remove(hash);
    }

    /// Serves an agent's local API at the socket, and moves blocks by what it calls `transport`.
    pub(crate) fn serve_agent(&self, node: &str, transport: &'static str, socket: &Path) {
        let listener = UnixListener::bind(socket).unwrap();
        let agent = agent::FakeAgent::new(node, transport, self.clone());
        let server = Server::builder()
            .add_service(agent.service())
            .serve_with_incoming(UnixListenerStream::new(listener));
        tokio::spawn(server);
    }

    /// Serves a coordinator on a free port; gives its address.
    pub(crate) async fn serve_coordinator(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let service = coordinator::FakeCoordinator(self.clone()).service();
        let server = Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        url
    }
}
