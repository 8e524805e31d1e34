//! Owns the runs of the `nft` program. Never knows what it is told.

use std::{process::Stdio, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
};

use super::super::error::NetworkError;

/// One run: normally 2 to 9 ms.
const NFT_DEADLINE: Duration = Duration::from_secs(10);
/// What is read of one run's output, bytes.
const NFT_OUTPUT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Carries out a script, as one transaction.
pub(super) async fn run_script(step: &'static str, script: &str) -> Result<(), NetworkError> {
    nft(step, &["-f", "-"], script).await.map(drop)
}

/// Runs `nft` in the caller's network namespace and returns what it printed.
pub(super) async fn nft(step: &'static str, args: &[&str], input: &str) -> Result<Vec<u8>, NetworkError> {
    let spawn = |source| NetworkError::NftSpawn { step, source };
    let mut child = Command::new("nft")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(spawn)?;
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
