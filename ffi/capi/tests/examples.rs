//! The examples do what they say: compiled with warnings as errors, against two real agents.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;

use std::{path::Path, process::Command};

use harness::{Cluster, Coordinator, Installed, Link, run};

const C: &str = "examples/publish_and_pull.c";
const EMBEDDED: &str = "examples/embedded_agents.c";
const GPU: &str = "examples/gpu_blocks.c";
const CPP: &str = "examples/pool_cache.cpp";

fn sockets(cluster: &Cluster) -> [String; 2] {
    [cluster.socket("a"), cluster.socket("b")]
}

#[test]
fn in_c_linked_shared_and_static() {
    let installed = Installed::new();
    for (link, transport) in [(Link::Shared, "shm"), (Link::Static, "tcp")] {
        let cluster = Cluster::start(transport);
        let program = installed.compile(C, "publish_and_pull", link);
        let said = run(Command::new(program).args(sockets(&cluster)));
        assert!(
            said.contains("64 blocks, every byte as published"),
            "{said}"
        );
        assert!(said.contains(&format!("from a by {transport}")), "{said}");
    }
}

#[test]
fn in_cpp() {
    let installed = Installed::new();
    let cluster = Cluster::start("tcp");
    let program = installed.compile(CPP, "pool_cache", Link::Shared);
    let said = run(Command::new(program).args(sockets(&cluster)));
    assert!(
        said.contains("32 blocks, every byte as put; b pulled 32; 32 evicted"),
        "{said}"
    );
}

#[test]
fn from_gpu_to_gpu() {
    let cuda = kvferry_cuda_fake::FakeCuda::new();
    let dir = cuda.dir().display().to_string();
    let installed = Installed::new();
    let cluster = Cluster::start_with("tcp", &[("LD_LIBRARY_PATH", &dir)]);
    let more = [format!("-L{dir}"), "-l:libcuda.so.1".to_owned()];
    let program = installed.compile_with(GPU, "gpu_blocks", Link::Shared, &more);
    let said = run(Command::new(program)
        .args(sockets(&cluster))
        .env("LD_LIBRARY_PATH", &dir));
    assert!(
        said.contains("32 blocks from GPU memory to GPU memory, every byte as published"),
        "{said}"
    );
}

#[test]
fn with_agents_in_the_process() {
    let installed = Installed::new();
    let coordinator = Coordinator::start();
    for (link, name) in [(Link::Static, "static"), (Link::Sanitized, "sanitized")] {
        let program = installed.compile(EMBEDDED, name, link);
        let said = run(Command::new(program)
            .arg(&coordinator.url)
            .arg(installed.dir.path()));
        assert!(said.contains("block 0 from a by shm"), "{said}");
        assert!(
            said.contains("16 blocks, every byte as published"),
            "{said}"
        );
    }
}

#[test]
fn with_sanitizers() {
    let installed = Installed::new();
    for (source, name) in [(C, "c"), (CPP, "cpp")] {
        let cluster = Cluster::start("tcp");
        let program = installed.compile(source, name, Link::Sanitized);
        run(Command::new(program).args(sockets(&cluster)));
    }
}

#[test]
fn under_valgrind() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("skipped: valgrind is not installed");
        return;
    }
    let installed = Installed::new();
    let cluster = Cluster::start("tcp");
    let program = installed.compile(C, "publish_and_pull", Link::Shared);
    valgrind(&program, "yes", &sockets(&cluster));
    let coordinator = Coordinator::start();
    let program = installed.compile(EMBEDDED, "embedded_agents", Link::Shared);
    let folder = installed.dir.path().display().to_string();
    // The libraries of a whole agent are optimised: such code branches on bytes that make no difference.
    valgrind(&program, "no", &[coordinator.url.clone(), folder]);
}

fn valgrind(program: &Path, undefined: &str, arguments: &[String]) {
    run(Command::new("valgrind")
        .args([
            "--quiet",
            "--error-exitcode=9",
            "--leak-check=full",
            "--errors-for-leak-kinds=definite",
            "--show-leak-kinds=definite",
            &format!("--undef-value-errors={undefined}"),
        ])
        .arg(program)
        .args(arguments));
}
