//! What the header promises, asked in C: `tests/c/*.c`, with sanitizers, against real agents.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;

use std::process::Command;

use harness::{Cluster, Coordinator, Installed, Link, run};

/// Compiles and runs a program with the agents' sockets and what else it needs.
fn holds(name: &str, more: impl Fn(&Cluster) -> Vec<u32>) {
    let installed = Installed::new();
    // An owner that is stopped is still read by shared memory; these tests want it to be missed.
    let cluster = Cluster::start("tcp");
    let program = installed.compile(&format!("tests/c/{name}.c"), name, Link::Sanitized);
    let more = more(&cluster).into_iter().map(|pid| pid.to_string());
    run(Command::new(program)
        .args([cluster.socket("a"), cluster.socket("b")])
        .args(more));
}

#[test]
fn what_is_wrong_is_refused_with_its_own_status() {
    holds("refusals", |_| Vec::new());
}

#[test]
fn a_pull_has_one_outcome_per_block_whatever_is_done_to_it() {
    holds("pulls", |cluster| vec![cluster.a.pid(), cluster.b.pid()]);
}

#[test]
fn a_pull_in_stages_tells_of_what_is_there() {
    holds("stages", |cluster| vec![cluster.a.pid()]);
}

#[test]
fn an_agent_that_is_gone_is_said_to_be_gone() {
    holds("agent_gone", |cluster| {
        vec![cluster.a.pid(), cluster.b.pid()]
    });
}

#[test]
fn one_handle_serves_many_threads() {
    holds("threads", |_| Vec::new());
}

#[test]
fn tensors_are_published_found_and_pulled() {
    holds("tensors", |_| Vec::new());
}

#[test]
fn an_agent_in_the_process_leaves_nothing_behind() {
    let installed = Installed::new();
    let coordinator = Coordinator::start();
    let program = installed.compile("tests/c/embed.c", "embed", Link::Sanitized);
    run(Command::new(program)
        .arg(&coordinator.url)
        .arg(installed.dir.path()));
}
