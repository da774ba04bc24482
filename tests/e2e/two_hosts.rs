//! The README's walk-through, followed: two hosts (network namespaces joined by a wire), a
//! coordinator and an agent on one, an agent on the other, a file put here and got there.

use crate::hosts::Hosts;

#[test]
fn a_file_put_on_one_host_is_got_on_the_other() {
    let Some(mut hosts) = Hosts::star(2) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let listen = format!("{}:7400", hosts.address(0));
    let coordinator = &format!("http://{listen}");
    hosts.start(0, dir, &["coordinator", "--listen", &listen, "--insecure"]);
    for (host, node, socket) in [(0, "node-1", "one.sock"), (1, "node-2", "two.sock")] {
        let address = hosts.address(host);
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
