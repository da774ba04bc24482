//! Another process that owns GPU memory: this test program, started anew.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use kvferry_cuda::{DeviceUuid, GpuMemory, IpcHandle};

use super::{World, pattern, read, small_ring, write};

/// Which libcuda the child loads: a path, or SYSTEM. Unset, `exporter_child` is no child.
const VARIABLE: &str = "KVFERRY_TEST_CUDA_EXPORTER";
const SYSTEM: &str = "system";
/// Before what the child says, among what the test harness says.
const MARK: &str = "exporter: ";

/// Bytes the child's memory has, and the seed of its pattern.
pub(crate) const LEN: u64 = 3 << 20;
pub(crate) const SEED: u64 = 7;

pub(crate) struct Exporter {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    pub(crate) handle: IpcHandle,
    pub(crate) offset: u64,
    pub(crate) uuid: DeviceUuid,
}

impl Exporter {
    pub(crate) fn start(library: Option<&Path>) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "exporter_child",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(VARIABLE, library.unwrap_or(Path::new(SYSTEM)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let said = heard(&mut output);
        let mut words = said.split(' ');
        let hex = words.next().unwrap();
        let bytes: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect();
        let handle = IpcHandle::try_from(bytes.as_slice()).unwrap();
        let offset = words.next().unwrap().parse().unwrap();
        let uuid = words.next().unwrap().parse().unwrap();
        Self {
            child,
            input,
            output,
            handle,
            offset,
            uuid,
        }
    }

    /// Is its memory the pattern of this seed, as the child sees it?
    pub(crate) fn sees(&mut self, seed: u64) -> bool {
        writeln!(self.input.as_mut().unwrap(), "{seed}").unwrap();
        heard(&mut self.output) == "true"
    }

    /// Ends it, memory and all.
    pub(crate) fn end(&mut self) {
        drop(self.input.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

fn heard(output: &mut BufReader<ChildStdout>) -> String {
    loop {
        let mut line = String::new();
        assert_ne!(
            output.read_line(&mut line).unwrap(),
            0,
            "the exporter ended"
        );
        if let Some((_, said)) = line.split_once(MARK) {
            return said.trim().to_owned();
        }
    }
}

/// The child's half, in the test `exporter_child` of each program.
pub(crate) fn run_as_child() {
    let Some(which) = env::var_os(VARIABLE) else {
        return;
    };
    let world = World::open((which != SYSTEM).then(|| PathBuf::from(which))).unwrap();
    let context = world.context();
    let gpu = GpuMemory::allocate(&context, LEN).unwrap();
    let staging = small_ring(&context, 2, 2);
    write(&staging, &gpu, vec![0..LEN], &pattern(SEED, 0..LEN));
    let (handle, offset) = gpu.export().unwrap();
    let hex: String = handle.0.iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{MARK}{hex} {offset} {}", context.device().uuid());
    for line in std::io::stdin().lines() {
        let seed = line.unwrap().parse().unwrap();
        println!(
            "{MARK}{}",
            read(&staging, &gpu, vec![0..LEN]) == pattern(seed, 0..LEN)
        );
    }
}
