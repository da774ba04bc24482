//! Counting instructions of a piece of work with callgrind.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use serde::{Deserialize, Serialize};

use super::{InstructionsError, work::Work};

/// Repetitions: enough that the seeds of hash tables even out.
const TIMES: u32 = 8;
/// Counting begins and ends with this function, under any mangling.
const MEASURED: &str = "--toggle-collect=*instructions*work*measured*";

/// What a piece of work costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Count {
    /// Which.
    pub name: String,
    /// Of what it counts.
    pub per: String,
    /// Instructions of each.
    pub instructions: f64,
}

/// Counts a piece of work that `program` does when it is told `--work NAME --times N`.
///
/// # Errors
/// [`InstructionsError`].
pub fn count(program: &Path, work: Work) -> Result<Count, InstructionsError> {
    let collected = run(program, work, TIMES)?;
    Ok(Count {
        name: work.name().to_owned(),
        per: work.unit().to_owned(),
        instructions: collected as f64 / (u64::from(TIMES) * work.units()) as f64,
    })
}

fn run(program: &Path, work: Work, times: u32) -> Result<u64, InstructionsError> {
    let done = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            MEASURED,
        ])
        .arg(program)
        .args(["--work", work.name(), "--times", &times.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .map_err(InstructionsError::Valgrind)?;
    let said = String::from_utf8_lossy(&done.stderr);
    let work = work.name().to_owned();
    if !done.status.success() {
        eprint!("{said}");
        let status = done.status;
        return Err(InstructionsError::Failed { work, status });
    }
    let counted = collected(&said).filter(|count| *count > 0);
    counted.ok_or(InstructionsError::NoCount { work })
}

/// "==12== Collected : 1234".
fn collected(said: &str) -> Option<u64> {
    let line = said.lines().find(|line| line.contains("Collected"))?;
    line.rsplit(':').next()?.trim().parse().ok()
}

/// How far a count is from an earlier one, as a share of that.
#[must_use]
pub fn change(before: &Count, now: &Count) -> f64 {
    match before.instructions {
        0.0 => 0.0,
        instructions => now.instructions / instructions - 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_read_from_what_valgrind_says() {
        let said =
            "==7== Events    : Ir\n==7== Collected : 123456\n==7==\n==7== I   refs:      123,456\n";
        assert_eq!(collected(said), Some(123_456));
        assert_eq!(collected("==7== oops"), None);
    }

    #[test]
    fn a_change_is_a_share() {
        let count = |instructions| Count {
            name: "a".to_owned(),
            per: "block".to_owned(),
            instructions,
        };
        assert!((change(&count(200.0), &count(210.0)) - 0.05).abs() < 1e-9);
    }
}
