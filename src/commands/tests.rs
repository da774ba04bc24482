//! `put`, `get` and `locate` over the real protocol, against fakes.

use std::{fs, path::PathBuf};

use clap::Parser;
use tempfile::TempDir;

use super::{
    get::{self, GetError},
    locate,
    put::{self, PutError},
};
use crate::{
    cli::{Cli, Command},
    client::ClientError,
    failure::Done,
    manifest::Manifest,
    testing::World,
};

struct Site {
    world: World,
    coordinator: String,
    directory: TempDir,
}

impl Site {
    /// A coordinator, and two agents whose pools hold eight blocks each.
    async fn start() -> Self {
        let world = World::default();
        let directory = tempfile::tempdir().unwrap();
        for node in ["one", "two"] {
            world.serve_agent(node, "tcp", &directory.path().join(node));
        }
        Self {
            coordinator: world.serve_coordinator().await,
            world,
            directory,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Parses a command line, with words beginning in @ as paths of this site.
    fn command(&self, node: &str, line: &str) -> Command {
        let words = line
            .split_whitespace()
            .map(|word| match word.strip_prefix('@') {
                Some(name) => self.path(name).display().to_string(),
                None => word.to_owned(),
            });
        let socket = self.path(node).display().to_string();
        let reach = ["--coordinator", &self.coordinator, "--socket", &socket].map(str::to_owned);
        Cli::try_parse_from(words.chain(reach)).unwrap().command
    }

    async fn put(&self, line: &str) -> Result<Done, PutError> {
        let Command::Put(args) = self.command("one", line) else {
            panic!("{line}");
        };
        put::run(args).await
    }

    async fn get(&self, node: &str, line: &str) -> Result<Done, GetError> {
        let Command::Get(args) = self.command(node, line) else {
            panic!("{line}");
        };
        get::run(args).await
    }

    async fn locate(&self, line: &str) -> Done {
        let Command::Locate(args) = self.command("one", line) else {
            panic!("{line}");
        };
        locate::run(args).await.unwrap()
    }

    /// A file of two and a half blocks of 4 KiB.
    fn write_file(&self) -> Vec<u8> {
        let bytes: Vec<u8> = (0..10_240u32).map(|n| (n % 253) as u8).collect();
        fs::write(self.path("in"), &bytes).unwrap();
        bytes
    }
}

const PUT: &str = "kvferry put @in --namespace t/files --block-bytes 4KiB";
const GET: &str = "kvferry get @in.kvf.json -o @out";

#[tokio::test]
async fn a_file_comes_back_on_either_node() {
    let site = Site::start().await;
    let bytes = site.write_file();
    assert_eq!(site.put(PUT).await.unwrap(), Done::All);
    let manifest = Manifest::read(&site.path("in.kvf.json")).unwrap();
    assert_eq!((manifest.length, manifest.hashes.len()), (10_240, 3));
    for node in ["one", "two"] {
        assert_eq!(site.get(node, GET).await.unwrap(), Done::All);
        assert!(fs::read(site.path("out")).unwrap() == bytes, "{node}");
        fs::remove_file(site.path("out")).unwrap();
    }
    assert_eq!(
        site.locate("kvferry locate -m @in.kvf.json").await,
        Done::All
    );
}

#[tokio::test]
async fn a_missing_block_leaves_no_file_and_says_so() {
    let site = Site::start().await;
    site.write_file();
    site.put(PUT).await.unwrap();
    let manifest = Manifest::read(&site.path("in.kvf.json")).unwrap();
    site.world.forget(manifest.hashes[1].as_bytes());
    assert_eq!(site.get("two", GET).await.unwrap(), Done::InPart);
    assert!(!site.path("out").exists());
    assert_eq!(
        site.locate("kvferry locate -m @in.kvf.json").await,
        Done::InPart
    );
}

#[tokio::test]
async fn wrong_bytes_are_noticed_by_their_hash() {
    let site = Site::start().await;
    site.write_file();
    site.put(PUT).await.unwrap();
    site.world.spoil();
    assert_eq!(site.get("two", GET).await.unwrap(), Done::InPart);
    assert!(!site.path("out").exists());
}

#[tokio::test]
async fn a_file_larger_than_the_pool_is_refused() {
    let site = Site::start().await;
    site.write_file();
    let refused = site
        .put("kvferry put @in -n t/small --block-bytes 1KiB")
        .await;
    assert!(matches!(
        refused,
        Err(PutError::PoolTooSmall {
            blocks: 10,
            slots: 8,
            ..
        })
    ));
}

#[tokio::test]
async fn an_empty_file_is_a_file() {
    let site = Site::start().await;
    fs::write(site.path("in"), "").unwrap();
    site.put(PUT).await.unwrap();
    site.get("two", GET).await.unwrap();
    assert_eq!(fs::read(site.path("out")).unwrap(), b"");
}

#[tokio::test]
async fn no_agent_is_said_before_anything_is_done() {
    let site = Site::start().await;
    site.write_file();
    let Command::Put(args) = site.command("nobody", PUT) else {
        panic!("not a put");
    };
    let refused = put::run(args).await;
    assert!(matches!(
        refused,
        Err(PutError::Client(ClientError::NoAgent { .. }))
    ));
    assert!(!site.path("in.kvf.json").exists());
}
