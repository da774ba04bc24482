//! An owner in another process, which is killed while it is read from.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use kvferry_ibverbs::{
    ConnectOptions, Endpoint, Gid, Init, LinkLayer, Mtu, PairOptions, Psn, QueuePair, RemoteKey,
    WorkError, WorkStatus,
};

use crate::rig::{self, Side, at, contents, memory, pattern, patterned};

const BYTES: u64 = 4 << 20;

/// What the two sides tell each other, on one line.
fn encode(endpoint: &Endpoint, key: RemoteKey) -> String {
    let gid: Vec<String> = endpoint.gid.0.iter().map(ToString::to_string).collect();
    format!(
        "peer {} {} {} {} {} {} {} {} {} {}",
        endpoint.qp_num,
        endpoint.psn.get(),
        endpoint.lid,
        endpoint.mtu,
        endpoint.responder_depth,
        endpoint.initiator_depth,
        key.address,
        key.rkey,
        key.len,
        gid.join(" "),
    )
}

fn decode(line: &str, link_layer: LinkLayer) -> (Endpoint, RemoteKey) {
    let words: Vec<u64> = line
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let mut gid = [0; 16];
    for (byte, word) in gid.iter_mut().zip(&words[9..]) {
        *byte = *word as u8;
    }
    let endpoint = Endpoint {
        qp_num: words[0] as u32,
        psn: Psn::new(words[1] as u32).unwrap(),
        gid: Gid(gid),
        lid: words[2] as u16,
        link_layer,
        mtu: Mtu::from_bytes(words[3] as u32).unwrap(),
        responder_depth: words[4] as u8,
        initiator_depth: words[5] as u8,
    };
    let key = RemoteKey {
        address: words[6],
        rkey: words[7] as u32,
        len: words[8],
    };
    (endpoint, key)
}

fn bound(side: &Side) -> QueuePair<Init> {
    QueuePair::new(&side.domain, &side.queue, PairOptions::default())
        .unwrap()
        .bind(&side.address)
        .unwrap()
}

/// The line that begins with "peer", among whatever else a test prints.
fn peer_line(from: &mut impl BufRead) -> String {
    from.lines()
        .map(Result::unwrap)
        .find_map(|line| Some(line[line.find("peer ")? + 5..].to_owned()))
        .unwrap()
}

/// The other process: serves its memory until it is killed, or its input ends.
#[test]
fn owner_process() {
    if env::var("KVFERRY_RDMA_OWNER").is_err() {
        return; // a helper of the test below, and no test
    }
    let rig = rig::rig().unwrap();
    let side = &rig.owner;
    let source = patterned(BYTES, 9);
    let region = side.readable(&source);
    let pair = bound(side);
    println!("{}", encode(&pair.endpoint(), region.key()));
    let mut input = std::io::stdin().lock();
    let (reader, _) = decode(&peer_line(&mut input), side.address.link_layer);
    let _pair = pair.connect(&reader, &ConnectOptions::default()).unwrap();
    println!("peer ready");
    let _ = input.read_line(&mut String::new());
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_owner_that_is_killed_is_noticed_and_what_came_before_is_right() {
    let Some(rig) = rig::rig() else { return };
    let side = &rig.reader;
    // On another machine it is reached by a command that carries its input and output.
    let mut command = match env::var("KVFERRY_RDMA_OWNER_COMMAND") {
        Ok(reached_by) => {
            let mut words = reached_by.split_whitespace();
            let mut command = Command::new(words.next().unwrap());
            command.args(words);
            command
        }
        Err(_) => {
            let mut command = Command::new(env::current_exe().unwrap());
            command.args(["--exact", "processes::owner_process", "--nocapture"]);
            command
        }
    };
    let mut owner = command
        .env("KVFERRY_RDMA_OWNER", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map(Killed)
        .unwrap();
    let mut output = BufReader::new(owner.0.stdout.take().unwrap());
    let mut input = owner.0.stdin.take().unwrap();
    let (peer, key) = decode(&peer_line(&mut output), side.address.link_layer);
    let pair = bound(side);
    let unused = RemoteKey {
        address: 0,
        len: 0,
        rkey: 0,
    };
    writeln!(input, "{}", encode(&pair.endpoint(), unused)).unwrap();
    assert_eq!(peer_line(&mut output), "ready");
    let pair = pair
        .connect(&peer, &ConnectOptions::default())
        .unwrap()
        .ready()
        .unwrap();
    let target = memory(BYTES);
    let to = side.local(&target);
    let block = 64 << 10;
    let blocks = BYTES / block;
    let mut chain = pair.chain();
    let (mut done, mut next, mut right) = (Vec::new(), 0, 0);
    let (start, mut killed) = (Instant::now(), None);
    // Reads the owner's memory round and round until that fails.
    let (error, failed) = 'reading: loop {
        assert!(start.elapsed() < rig::PATIENCE);
        while chain.len() < 32 {
            let offset = next % blocks * block;
            let piece = to.piece(offset..offset + block).unwrap();
            chain.push(next, at(key, offset), [piece]).unwrap();
            next += 1;
        }
        let _ = pair.post(&mut chain);
        side.queue
            .wait(&mut done, Duration::from_millis(100))
            .unwrap();
        for finished in done.drain(..) {
            match finished.result {
                Ok(()) => right += 1,
                Err(error) => break 'reading (error, Instant::now()),
            }
        }
        if killed.is_none() && right >= 2 * blocks {
            assert!(contents(&target, 0, BYTES) == pattern(0, BYTES, 9));
            owner.0.kill().unwrap();
            killed = Some(Instant::now());
        }
    };
    let noticed = failed - killed.unwrap();
    println!("{right} READs, then within {noticed:?}: {error}");
    assert!(noticed < rig::PATIENCE);
    assert!(matches!(
        error,
        WorkError::Unconfirmed
            | WorkError::Failed(WorkStatus::RemoteAccess | WorkStatus::RetriesExceeded)
    ));
    let closed = pair.close();
    assert!(closed.settle(rig::PATIENCE).unwrap());
    assert!(contents(&target, 0, BYTES) == pattern(0, BYTES, 9));
}
