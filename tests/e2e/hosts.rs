//! Hosts that are network namespaces: spokes, each on a wire of its own to a hub that routes between them.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

const KVFERRY: &str = env!("CARGO_BIN_EXE_kvferry");
/// A tool that a starting cluster does not answer yet tries again until then.
const ANSWER_BOUND: Duration = Duration::from_secs(120);

/// Gone with this value, and every process that was started through it.
pub(crate) struct Hosts {
    tag: String,
    spokes: usize,
    children: Vec<Child>,
}

impl Hosts {
    /// None, and a line that says so, where this user may not make network namespaces, or this kernel has no wires for them.
    pub(crate) fn star(spokes: usize) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let hosts = Self {
            tag: format!("kvf{}-{number}", std::process::id()),
            spokes,
            children: Vec::new(),
        };
        let hub = hosts.hub();
        if !quietly("ip", &["netns", "add", &hub]) {
            skip("this user may not make network namespaces (run as root, with iproute2)");
            return None;
        }
        if !quietly("ip", &["-n", &hub, "link", "add", "try", "type", "veth"]) {
            skip("this kernel has no veth devices, or this user may not make any");
            return None;
        }
        ip(&["-n", &hub, "link", "del", "try"]);
        ip(&["-n", &hub, "link", "set", "lo", "up"]);
        // Forwarding is the hub's own setting: /proc/sys shows the namespace of who looks.
        hosts.in_hub("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
        for host in 0..spokes {
            let (name, hub_side) = (hosts.name(host), hosts.hub_side(host));
            let (here, there) = (hosts.address(host), format!("10.77.{}.1", host + 1));
            ip(&["netns", "add", &name]);
            ip(&[
                "link", "add", &hub_side, "netns", &hub, "type", "veth", "peer", "name", "wire",
                "netns", &name,
            ]);
            let (here, gateway) = (format!("{here}/24"), there.clone());
            let there = format!("{there}/24");
            ip(&["-n", &hub, "addr", "add", &there, "dev", &hub_side]);
            ip(&["-n", &hub, "link", "set", &hub_side, "up"]);
            ip(&["-n", &name, "addr", "add", &here, "dev", "wire"]);
            ip(&["-n", &name, "link", "set", "wire", "up"]);
            ip(&["-n", &name, "link", "set", "lo", "up"]);
            ip(&["-n", &name, "route", "add", "default", "via", &gateway]);
        }
        Some(hosts)
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.tag)
    }

    fn name(&self, host: usize) -> String {
        format!("{}-{host}", self.tag)
    }

    fn hub_side(&self, host: usize) -> String {
        format!("spoke{host}")
    }

    fn in_hub(&self, program: &str, args: &[&str]) {
        assert!(self.try_in_hub(program, args), "{program} {args:?}");
    }

    fn try_in_hub(&self, program: &str, args: &[&str]) -> bool {
        let hub = self.hub();
        let args = [&["netns", "exec", &hub, program], args].concat();
        quietly("ip", &args)
    }

    pub(crate) fn address(&self, host: usize) -> String {
        format!("10.77.{}.2", host + 1)
    }

    /// What to put before a command that is to run on a host.
    pub(crate) fn prefix(&self, host: usize) -> [String; 4] {
        ["ip", "netns", "exec", &self.name(host)].map(str::to_owned)
    }

    fn command(&self, host: usize, dir: &Path, args: &[&str]) -> Command {
        let prefix = self.prefix(host);
        let mut command = Command::new(&prefix[0]);
        command
            .args(&prefix[1..])
            .arg(KVFERRY)
            .args(args)
            .current_dir(dir)
            .stdin(Stdio::null());
        command
    }

    /// Starts `kvferry` on a host.
    pub(crate) fn start(&mut self, host: usize, dir: &Path, args: &[&str]) {
        let child = self
            .command(host, dir, args)
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts");
        self.children.push(child);
    }

    /// Runs `kvferry` to the end, again and again until it succeeds: the others may still be starting.
    pub(crate) fn run(&self, host: usize, dir: &Path, args: &[&str]) -> String {
        let deadline = Instant::now() + ANSWER_BOUND;
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

    /// Takes a host's wire away.
    pub(crate) fn cut(&self, host: usize) {
        self.in_hub("ip", &["link", "set", &self.hub_side(host), "down"]);
    }

    /// Gives it back.
    pub(crate) fn mend(&self, host: usize) {
        self.in_hub("ip", &["link", "set", &self.hub_side(host), "up"]);
    }

    /// What `from` sends to `to` vanishes; the other way is as it was.
    pub(crate) fn swallow(&self, from: usize, to: usize) {
        self.rule("add", from, to);
    }

    /// No longer.
    pub(crate) fn deliver(&self, from: usize, to: usize) {
        self.rule("del", from, to);
    }

    fn rule(&self, verb: &str, from: usize, to: usize) {
        let (from, to) = (self.address(from), self.address(to));
        let rule = ["rule", verb, "from", &from, "to", &to, "blackhole"];
        self.in_hub("ip", &rule);
    }

    /// What goes towards a host passes this queueing discipline of the kernel's: `tbf`, `netem`. False, and a line that
    /// says so, where the kernel has none of the kind.
    pub(crate) fn shape(&self, host: usize, discipline: &[&str]) -> bool {
        let shaped = self.try_shape(host, discipline);
        if !shaped {
            skip(&format!("no tc, or no {} in this kernel", discipline[0]));
        }
        shaped
    }

    /// As above, where there is something else to try.
    pub(crate) fn try_shape(&self, host: usize, discipline: &[&str]) -> bool {
        let device = self.hub_side(host);
        let qdisc = ["qdisc", "replace", "dev", &device, "root"];
        self.try_in_hub("tc", &[&qdisc, discipline].concat())
    }

    /// As it was before `shape`.
    pub(crate) fn unshape(&self, host: usize) {
        let device = self.hub_side(host);
        self.in_hub("tc", &["qdisc", "del", "dev", &device, "root"]);
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for child in &mut self.children {
            // `ip netns exec` has become the program itself, so this is its pid.
            let _ = child.kill();
            let _ = child.wait();
        }
        let spokes = (0..self.spokes).map(|host| self.name(host));
        for name in spokes.chain([self.hub()]) {
            quietly("ip", &["netns", "del", &name]);
        }
    }
}

/// Where everything must be there (tests/rdma), this is a failure.
fn skip(why: &str) {
    assert!(
        std::env::var_os("KVFERRY_HOSTS_REQUIRED").is_none(),
        "{why}"
    );
    println!("skipped: {why}");
}

fn ip(args: &[&str]) {
    assert!(quietly("ip", args), "ip {args:?}");
}

fn quietly(program: &str, args: &[&str]) -> bool {
    Command::new(program)
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
