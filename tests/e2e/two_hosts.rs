//! The README's walk-through, followed: two hosts (network namespaces joined by a veth pair), a
//! coordinator and an agent on one, an agent on the other, a file put here and got there.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const KVFERRY: &str = env!("CARGO_BIN_EXE_kvferry");

/// Two network namespaces; gone with this value, and every process in them.
struct Hosts {
    names: [String; 2],
    children: Vec<Child>,
}

impl Hosts {
    /// None where this user may not make network namespaces.
    fn new() -> Option<Self> {
        let tag = std::process::id();
        let hosts = Self {
            names: [format!("kvf-{tag}-1"), format!("kvf-{tag}-2")],
            children: Vec::new(),
        };
        let [one, two] = &hosts.names;
        let veth = [format!("kv{tag}a"), format!("kv{tag}b")];
        if !ip(&["netns", "add", one]) {
            return None;
        }
        assert!(ip(&["netns", "add", two]));
        assert!(ip(&[
            "link", "add", &veth[0], "netns", one, "type", "veth", "peer", "name", &veth[1],
            "netns", two,
        ]));
        for (name, device, address) in [
            (one, &veth[0], "10.77.0.1/24"),
            (two, &veth[1], "10.77.0.2/24"),
        ] {
            assert!(ip(&["-n", name, "addr", "add", address, "dev", device]));
            assert!(ip(&["-n", name, "link", "set", device, "up"]));
            assert!(ip(&["-n", name, "link", "set", "lo", "up"]));
        }
        Some(hosts)
    }

    fn command(&self, host: usize, dir: &Path, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.names[host], KVFERRY])
            .args(args)
            .current_dir(dir)
            .stdin(Stdio::null());
        command
    }

    fn start(&mut self, host: usize, dir: &Path, args: &[&str]) {
        let child = self
            .command(host, dir, args)
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts");
        self.children.push(child);
    }

    /// Runs to the end, again and again until it succeeds: the others may still be starting.
    fn run(&self, host: usize, dir: &Path, args: &[&str]) -> String {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let output = self.command(host, dir, args).output().expect("it starts");
            if output.status.success() {
                return String::from_utf8_lossy(&output.stdout).into_owned();
            }
            assert!(
                Instant::now() < deadline,
                "{args:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for child in &mut self.children {
            // `ip netns exec` has become the program itself, so this is its pid.
            let _ = child.kill();
            let _ = child.wait();
        }
        for name in &self.names {
            ip(&["netns", "del", name]);
        }
    }
}

fn ip(args: &[&str]) -> bool {
    Command::new("ip")
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[test]
fn a_file_put_on_one_host_is_got_on_the_other() {
    let Some(mut hosts) = Hosts::new() else {
        println!("skipped: this user may not make network namespaces (run as root, with iproute2)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let coordinator = "http://10.77.0.1:7400";
    hosts.start(
        0,
        dir,
        &["coordinator", "--listen", "10.77.0.1:7400", "--insecure"],
    );
    for (host, node, address, socket) in [
        (0, "node-1", "10.77.0.1", "one.sock"),
        (1, "node-2", "10.77.0.2", "two.sock"),
    ] {
        let (peer, data) = (format!("{address}:7401"), format!("{address}:7402"));
        let socket = dir.join(socket).display().to_string();
        hosts.start(
            host,
            dir,
            &[
                "agent",
                "--node",
                node,
                "--coordinator",
                coordinator,
                "--listen-peer",
                &peer,
                "--listen-data",
                &data,
                "--socket",
                &socket,
                "--insecure",
            ],
        );
    }
    let bytes: Vec<u8> = (0..5_000_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 7) as u8)
        .collect();
    std::fs::write(dir.join("file"), &bytes).unwrap();
    let socket = |name: &str| dir.join(name).display().to_string();
    hosts.run(
        0,
        dir,
        &[
            "put",
            "file",
            "--namespace",
            "demo/files",
            "--socket",
            &socket("one.sock"),
            "--coordinator",
            coordinator,
        ],
    );
    let got = hosts.run(
        1,
        dir,
        &[
            "get",
            "file.kvf.json",
            "-o",
            "copy",
            "--socket",
            &socket("two.sock"),
            "--coordinator",
            coordinator,
        ],
    );
    assert!(got.contains("tcp"), "{got}");
    assert!(std::fs::read(dir.join("copy")).unwrap() == bytes);
    let nodes = hosts.run(1, dir, &["nodes", "--coordinator", coordinator]);
    assert!(
        nodes.contains("node-1") && nodes.contains("node-2"),
        "{nodes}"
    );
}
