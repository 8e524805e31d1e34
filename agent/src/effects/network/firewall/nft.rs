//! Owns the runs of the `nft` program. Never knows what it is told.

use std::{
    collections::VecDeque,
    io,
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
};

use super::super::error::NetworkError;

/// One run: normally 2 to 9 ms.
const NFT_DEADLINE: Duration = Duration::from_secs(10);
/// What is read of one run's output, bytes.
const NFT_OUTPUT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Runs that are remembered: more than there are between two looks at who changed the table.
const RUNS_MAX: usize = 256;

/// The latest runs, by the netlink port that the kernel gives them: the process's number (netlink(7)).
static RUNS: Mutex<VecDeque<u32>> = Mutex::new(VecDeque::new());

fn remember(run: u32) {
    let mut runs = RUNS.lock().unwrap_or_else(PoisonError::into_inner);
    if runs.len() == RUNS_MAX {
        runs.pop_front();
    }
    runs.push_back(run);
}

/// Whether it was a run of this process that had the netlink port, lately.
pub(in super::super) fn is_own_run(port: u32) -> bool {
    RUNS.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .contains(&port)
}

/// Carries out a script, as one transaction.
pub(super) async fn run_script(step: &'static str, script: &str) -> Result<(), NetworkError> {
    nft(step, &["-f", "-"], script).await.map(drop)
}

/// Runs `nft` in the caller's network namespace and returns what it printed.
pub(super) async fn nft(step: &'static str, args: &[&str], input: &str) -> Result<Vec<u8>, NetworkError> {
    let spawn = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => NetworkError::NftMissing { step },
        _ => NetworkError::NftSpawn { step, source },
    };
    let mut child = Command::new("nft")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(spawn)?;
    child.id().into_iter().for_each(remember);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let talk = async {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let write = async {
            if let Some(mut stdin) = stdin {
                // It may exit without reading all of it; its exit status and stderr say why.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
            Ok(0)
        };
        let read_out = async {
            match stdout {
                Some(pipe) => pipe.take(NFT_OUTPUT_BYTES_MAX).read_to_end(&mut out).await,
                None => Ok(0),
            }
        };
        let read_err = async {
            match stderr {
                Some(pipe) => pipe.take(NFT_OUTPUT_BYTES_MAX).read_to_end(&mut err).await,
                None => Ok(0),
            }
        };
        tokio::try_join!(write, read_out, read_err)?;
        let status = child.wait().await?;
        Ok((status, out, err))
    };
    let (status, out, err) = tokio::time::timeout(NFT_DEADLINE, talk)
        .await
        .map_err(|_| NetworkError::Deadline {
            step,
            subject: "nft".to_owned(),
            deadline: NFT_DEADLINE,
        })?
        .map_err(spawn)?;
    if !status.success() {
        let stderr = String::from_utf8_lossy(&err);
        return Err(NetworkError::Nft {
            step,
            stderr: stderr.split_whitespace().collect::<Vec<_>>().join(" "),
        });
    }
    Ok(out)
}
