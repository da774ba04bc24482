//! What strangers send to the data port: the owner stays up and serves everybody else.

use std::{net::SocketAddr, time::Duration};

use kvferry_agent::transport::tcp::TcpLimits;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    tcp::TcpWorld,
    world::{PATIENCE, World, check_alive, eventually, incarnation},
};

fn hello() -> Vec<u8> {
    let mut bytes = b"KVFd".to_vec();
    bytes.extend_from_slice(&1u16.to_le_bytes());
    bytes.extend_from_slice(&0u16.to_le_bytes());
    bytes.extend_from_slice(&incarnation().get().to_le_bytes());
    bytes.extend_from_slice(&0u32.to_le_bytes());
    bytes
}

/// What is not said by then never comes; who says something is let say it, also by a machine that makes everybody wait.
const WAITED_FOR: Duration = Duration::from_secs(4);

fn impatient() -> TcpLimits {
    TcpLimits {
        handshake_timeout: WAITED_FOR,
        frame_timeout: WAITED_FOR,
        max_handshakes: 8,
        max_connections: 16,
        ..TcpLimits::default()
    }
}

async fn connect(world: &TcpWorld) -> TcpStream {
    let address: SocketAddr = world.direct.addresses.data.unwrap();
    TcpStream::connect(address).await.unwrap()
}

/// Reads until the owner closes; gives what it said.
async fn until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    let closed = timeout(PATIENCE, stream.read_to_end(&mut said)).await;
    let _ = closed.expect("the owner keeps a connection that sent garbage");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_closes_its_own_connection_only() {
    let world = TcpWorld::with(impatient()).await;
    let link = world.direct_link().await;
    let mut noise = 88_172_645_463_325_252u64;
    for round in 0..40 {
        let mut stream = connect(&world).await;
        let mut bytes = if round % 2 == 0 { Vec::new() } else { hello() };
        for _ in 0..round * 20 {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            bytes.push(noise as u8);
        }
        // The owner may have closed in the middle of it.
        let _ = stream.write_all(&bytes).await;
        until_closed(&mut stream).await;
    }
    check_alive(&link).await;
    check_alive(&world.direct_link().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_hello_and_half_a_request_are_not_waited_for() {
    let world = TcpWorld::with(impatient()).await;
    let link = world.direct_link().await;
    let mut half = connect(&world).await;
    half.write_all(&hello()[..13]).await.unwrap();
    assert!(until_closed(&mut half).await.is_empty());

    let mut half = connect(&world).await;
    let mut bytes = hello();
    bytes.extend_from_slice(&1u32.to_le_bytes()); // id
    bytes.extend_from_slice(&3u32.to_le_bytes()); // spans
    bytes.extend_from_slice(&[0; 30]);
    half.write_all(&bytes).await.unwrap();
    assert_eq!(
        until_closed(&mut half).await.len(),
        28,
        "only the hello is answered"
    );

    for count in [0u32, 1 << 20, u32::MAX] {
        let mut huge = connect(&world).await;
        let mut bytes = hello();
        bytes.extend_from_slice(&1u32.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        huge.write_all(&bytes).await.unwrap();
        assert_eq!(until_closed(&mut huge).await.len(), 28);
    }
    check_alive(&link).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_connections_leaves_those_that_are_there_alone() {
    let world = TcpWorld::with(impatient()).await;
    let link = world.direct_link().await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(connect(&world).await);
    }
    check_alive(&link).await;
    eventually("turned some away", || world.counters.refused() > 0).await;
    assert!(world.counters.open() <= 16);
    // The silent ones run out of time, and newcomers are let in again.
    eventually("let the silent ones go", || world.counters.open() == 1).await;
    check_alive(&world.direct_link().await).await;
    drop(silent);

    // Connections that do say hello are told that the owner is busy.
    let mut polite = Vec::new();
    while world.counters.open() < 16 {
        let mut stream = connect(&world).await;
        stream.write_all(&hello()).await.unwrap();
        let mut answer = [0; 28];
        let read = timeout(PATIENCE, stream.read_exact(&mut answer))
            .await
            .unwrap();
        if read.is_ok() {
            polite.push(stream);
        }
    }
    let Err(refused) = world.connect(&world.direct).await else {
        panic!("let in over the bound");
    };
    assert!(
        refused.to_string().contains("as many connections"),
        "{refused}"
    );
    check_alive(&link).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_named() {
    use kvferry_agent::transport::tcp::{BindError, TcpServer};
    let world = TcpWorld::with(impatient()).await;
    let address = world.direct.addresses.data.unwrap();
    let again = TcpServer::bind(address, world.catalog.clone(), impatient()).await;
    assert!(matches!(again, Err(BindError::InUse { .. })));
}
