//! `ib_read_bw`, where there is a device: what its READs give without anybody's blocks.

use std::{
    ffi::OsString,
    io,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{io::AsyncReadExt, process::Command, time::timeout};

use super::{Done, Task};
use crate::transfer::{TransferError, process::cpu_seconds};

/// As Debian's perftest installs it.
const PROGRAM: &str = "ib_read_bw";
/// READs under way at a time: as many as devices usually take of one queue pair.
const DEPTH: &str = "128";
/// Exponent of the time after which a READ is sent again: 2 s. With its own 67 ms a busy software device does it in vain.
const RESEND: &str = "19";
/// Until the listening half listens.
const LISTENS: Duration = Duration::from_secs(5);
/// Between two tries to reach it.
const RETRY: Duration = Duration::from_millis(100);
/// Over the time that was asked for: it sets up and says what it found.
const OVERTIME: Duration = Duration::from_secs(30);

/// A port of a device, as `ib_read_bw` is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Such as `mlx5_0`.
    pub name: String,
    /// From 1 on.
    pub port: u8,
    /// Which of the port's addresses.
    pub gid_index: u8,
}

/// Where the program is; None where it is not installed.
#[must_use]
pub fn installed() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut found = std::env::split_paths(&path).map(|dir| dir.join(PROGRAM));
    found.find(|program| program.is_file())
}

/// One end reads from the other, both over this device, in messages of the task's blocks. Gives the processor time of both too.
pub(super) async fn measure(
    program: &Path,
    device: &Device,
    task: &Task,
) -> Result<(Done, f64), TransferError> {
    let seconds = task.millis.div_ceil(1000).max(1);
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port();
    let common = [
        ("-d", device.name.clone()),
        ("-i", device.port.to_string()),
        ("-x", device.gid_index.to_string()),
        ("-s", task.block_bytes.to_string()),
        ("-D", seconds.to_string()),
        ("-t", DEPTH.to_owned()),
        ("-u", RESEND.to_owned()),
        ("-p", port.to_string()),
    ];
    let start = |more: &[&str]| {
        let common = common
            .iter()
            .flat_map(|(flag, value)| [flag, value.as_str()]);
        let words = common.chain(["-F"]).chain(more.iter().copied());
        Command::new(program)
            .args(words.map(OsString::from))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
    };
    let mut owner = start(&[])?;
    let until = tokio::time::Instant::now() + LISTENS;
    let whole = async {
        loop {
            let mut reader = start(&["127.0.0.1"])?;
            let pids = [owner.id().unwrap_or(0), reader.id().unwrap_or(0)];
            let mut said = String::new();
            if let Some(out) = &mut reader.stdout {
                out.read_to_string(&mut said).await?;
            }
            // Neither was waited for yet, so that their processor time can still be read.
            let used = pids.into_iter().map(cpu_seconds).sum();
            let ended = reader.wait_with_output().await?;
            match figure(&said, task.block_bytes) {
                Some(done) => return Ok((done, used)),
                // The other half may not listen yet.
                None if tokio::time::Instant::now() < until => tokio::time::sleep(RETRY).await,
                None => {
                    let error = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
                    return Err(TransferError::ReadBw(format!("{}{error}", tail(&said))));
                }
            }
        }
    };
    let bound = LISTENS + Duration::from_secs(seconds) + OVERTIME;
    let late = |_| TransferError::Io(io::ErrorKind::TimedOut.into());
    let measured = timeout(bound, whole).await.map_err(late)?;
    if measured.is_err() {
        // It still listens.
        owner.kill().await?;
    }
    owner.wait().await?;
    measured
}

/// The line `BYTES ITERATIONS PEAK AVERAGE RATE`, with speeds in MiB/s.
fn figure(said: &str, bytes: u64) -> Option<Done> {
    said.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let size: u64 = words.next()?.parse().ok()?;
        let reads: u64 = words.next()?.parse().ok()?;
        let average: f64 = words.nth(1)?.parse().ok()?;
        let fits = size == bytes && reads > 0 && average > 0.0;
        fits.then(|| {
            let moved = bytes * reads;
            Done {
                bytes: moved,
                nanos: (moved as f64 / (average * f64::from(1 << 20)) * 1e9) as u64,
                batch_nanos: Vec::new(),
            }
        })
    })
}

/// The last of what it said.
fn tail(said: &str) -> String {
    let lines: Vec<_> = said.lines().rev().take(3).collect();
    let lines: Vec<_> = lines
        .into_iter()
        .rev()
        .map(|line| format!("{line}; "))
        .collect();
    lines.concat()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::transfer::yardstick::Kind;

    const SAID: &str = "\
 local address: LID 0000 QPN 0x0011 PSN 0x7e8f9c OUT 0x80 RKey 0x000206 VAddr 0x007f1c2e3ff000
---------------------------------------------------------------------------------------
 #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]
 65536      38100            0.00               2381.25            0.038100
---------------------------------------------------------------------------------------
";

    fn task(millis: u64) -> Task {
        Task {
            pieces: 1,
            kind: Kind::ReadBw,
            block_bytes: 65_536,
            batch: 64,
            lanes: 1,
            millis,
        }
    }

    #[test]
    fn the_average_is_read() {
        let done = figure(SAID, 65_536).unwrap();
        assert_eq!(done.bytes, 38_100 * 65_536);
        assert_eq!(done.nanos / 1_000_000, 1000);
        assert!(figure(SAID, 4096).is_none());
        assert!(figure("Couldn't connect to 127.0.0.1:18515\n", 65_536).is_none());
    }

    /// A program that takes the same words and finds nobody the first time.
    #[tokio::test]
    async fn the_reader_waits_until_the_owner_listens() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join(PROGRAM);
        let tried = dir.path().join("tried");
        let script = format!(
            "#!/bin/sh\nfor last; do :; done\n[ \"$last\" = 127.0.0.1 ] || exit 0\n\
             [ -e {0} ] || {{ touch {0}; echo \"Couldn't connect\"; exit 1; }}\ncat <<'END'\n{SAID}END\n",
            tried.display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let device = Device {
            name: "rxe0".to_owned(),
            port: 1,
            gid_index: 1,
        };
        let (done, _) = measure(&program, &device, &task(10)).await.unwrap();
        assert_eq!(done.bytes, 38_100 * 65_536);
        assert!(tried.exists());
    }
}
