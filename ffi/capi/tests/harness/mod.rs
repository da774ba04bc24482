//! A coordinator and agents as child processes, and programs in C that talk to them.

// Not every test uses all of it.
#![allow(dead_code)]

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::Once,
    time::{Duration, Instant},
};

/// The repository.
pub(crate) fn root() -> PathBuf {
    capi().join("../..")
}

/// This crate's folder.
pub(crate) fn capi() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where cargo put this test: target/PROFILE/deps, with the library beside it.
pub(crate) fn deps() -> PathBuf {
    let me = std::env::current_exe().expect("the test's own path");
    me.parent().expect("a folder").to_owned()
}

/// The `kvferry` command; built where it is not there yet.
fn binary() -> PathBuf {
    static BUILD: Once = Once::new();
    let profile = deps().parent().expect("a folder").to_owned();
    let binary = profile.join("kvferry");
    BUILD.call_once(|| {
        if binary.exists() {
            return;
        }
        let status = Command::new(env!("CARGO"))
            .args(["build", "--package", "kvferry", "--bin", "kvferry"])
            .arg("--target-dir")
            .arg(profile.parent().expect("a folder"))
            .current_dir(root())
            .status();
        assert!(status.expect("cargo runs").success());
    });
    assert!(binary.exists(), "{} is not there", binary.display());
    binary
}

/// What all are started with: nobody is taken for silent or stopped because the machine let him wait for some seconds.
const PATIENT: [(&str, &str); 4] = [
    ("KVFERRY_HIDE_AFTER_MS", "60000"),
    ("KVFERRY_PURGE_AFTER_MS", "120000"),
    ("KVFERRY_STALL_BOUND_MS", "60000"),
    ("KVFERRY_PULL_TIMEOUT_MS", "120000"),
];

/// A running `kvferry`; ends with this value, and with the test's process.
pub(crate) struct Process {
    child: Child,
    _stdin: Option<ChildStdin>,
    ready: serde_json::Value,
}

impl Process {
    fn start(args: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(binary())
            .args(args)
            .envs(PATIENT)
            .envs(environment.iter().copied())
            .args(["--announce", "--until-stdin-closes", "--log", "warn"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let line = lines
            .next()
            .expect("it gets ready")
            .expect("it can be read");
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            _stdin: child.stdin.take(),
            child,
            ready: serde_json::from_str(&line).expect("the first line is JSON"),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A coordinator alone.
pub(crate) struct Coordinator {
    pub(crate) url: String,
    _process: Process,
}

impl Coordinator {
    pub(crate) fn start() -> Self {
        let process = Process::start(
            &[
                "coordinator",
                "--listen",
                "127.0.0.1:0",
                "--listen-metrics",
                "off",
            ],
            &[],
        );
        let listen = process.ready["listen"].as_str().expect("an address");
        Self {
            url: format!("http://{listen}"),
            _process: process,
        }
    }
}

/// A coordinator and two agents, "a" and "b".
pub(crate) struct Cluster {
    pub(crate) a: Process,
    pub(crate) b: Process,
    _coordinator: Coordinator,
    dir: tempfile::TempDir,
}

impl Cluster {
    /// With this for both agents: "tcp" and "shm" use nothing else.
    pub(crate) fn start(transport: &str) -> Self {
        Self::start_with(transport, &[])
    }

    /// As above, with these in the agents' environment.
    pub(crate) fn start_with(transport: &str, environment: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let coordinator = Coordinator::start();
        let agent = |node: &str| {
            let socket = dir.path().join(format!("{node}.sock"));
            let args = [
                "agent",
                "--node",
                node,
                "--coordinator",
                &coordinator.url,
                "--listen-peer",
                "127.0.0.1:0",
                "--listen-data",
                "127.0.0.1:0",
                "--listen-metrics",
                "off",
                "--socket",
                &socket.display().to_string(),
                "--transport",
                transport,
            ];
            Process::start(&args, environment)
        };
        let (a, b) = (agent("a"), agent("b"));
        Self {
            a,
            b,
            _coordinator: coordinator,
            dir,
        }
    }

    pub(crate) fn socket(&self, node: &str) -> String {
        let socket = self.dir.path().join(format!("{node}.sock"));
        socket.display().to_string()
    }
}

/// The library as `install.sh` installs it, into a folder of the test's own.
pub(crate) struct Installed {
    pub(crate) dir: tempfile::TempDir,
}

impl Installed {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let output = Command::new(capi().join("install.sh"))
            .args([dir.path(), &deps()])
            .output();
        succeeded("install.sh", &output.expect("install.sh runs"));
        Self { dir }
    }

    /// What pkg-config says to this prefix.
    pub(crate) fn flags(&self, what: &[&str]) -> Vec<String> {
        let output = Command::new("pkg-config")
            .args(what)
            .arg("kvferry")
            .env("PKG_CONFIG_PATH", self.dir.path().join("lib/pkgconfig"))
            .output()
            .expect("pkg-config runs");
        let said = succeeded("pkg-config", &output);
        said.split_whitespace().map(str::to_owned).collect()
    }

    /// Compiles a program with every warning an error, linked as `link` says.
    pub(crate) fn compile(&self, source: &str, name: &str, link: Link) -> PathBuf {
        self.compile_with(source, name, link, &[])
    }

    /// As above, with more for the compiler.
    pub(crate) fn compile_with(
        &self,
        source: &str,
        name: &str,
        link: Link,
        more: &[String],
    ) -> PathBuf {
        let program = self.dir.path().join(name);
        let (compiler, standard) = match source.ends_with(".cpp") {
            true => ("c++", "-std=c++17"),
            false => ("cc", "-std=c11"),
        };
        let mut command = Command::new(compiler);
        command
            .args([
                standard,
                "-g",
                "-O1",
                "-Wall",
                "-Wextra",
                "-Wpedantic",
                "-Werror",
            ])
            .args(self.flags(&["--cflags"]))
            .arg(capi().join(source))
            .arg("-o")
            .arg(&program);
        let lib = self.dir.path().join("lib");
        match link {
            Link::Shared | Link::Sanitized => {
                if link == Link::Sanitized {
                    command.args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
                }
                command
                    .args(self.flags(&["--libs"]))
                    .arg(format!("-Wl,-rpath,{}", lib.display()));
            }
            Link::Static => {
                // All but the library itself as pkg-config says.
                let libs = self.flags(&["--libs", "--static"]);
                command.arg(lib.join("libkvferry.a"));
                command.args(libs.iter().filter(|flag| *flag != "-lkvferry"));
            }
        }
        succeeded(
            source,
            &command
                .arg("-pthread")
                .args(more)
                .output()
                .expect("a compiler"),
        );
        program
    }
}

/// How a program is linked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    Shared,
    Static,
    Sanitized,
}

/// Runs a program to its end, which must come in time and be a success; gives what it printed.
pub(crate) fn run(command: &mut Command) -> String {
    // Valgrind takes its time, and the machine may have others to let run.
    const BOUND: Duration = Duration::from_secs(900);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let deadline = Instant::now() + BOUND;
    while child.try_wait().expect("it can be waited for").is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("not done in time: {command:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().expect("its output");
    succeeded(&format!("{command:?}"), &output)
}

fn succeeded(what: &str, output: &Output) -> String {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{what}: {}\n{out}\n{err}",
        output.status
    );
    out.into_owned()
}
