//! Owns the first contact with containerd: waits for it, because after a boot it may come later than the agent, and
//! refuses a version that the agent cannot work with.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use containerd_client::services::v1::version_client::VersionClient;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;

use crate::sys::Chain;

/// The oldest version that is tested.
pub const VERSION_MIN: (u32, u32) = (1, 6);
/// One try, from connecting to the answer.
const TRY_LIMIT: Duration = Duration::from_secs(5);
/// Between tries.
const PAUSE: Duration = Duration::from_millis(500);

/// containerd cannot be worked with.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(
        "containerd at {} does not answer, waited {waited_s} s: {problem}; is it installed (`containerd --version`) and \
         running (`systemctl status containerd`)? `containerd_address` names its socket",
        address.display()
    )]
    Away {
        address: PathBuf,
        waited_s: u64,
        problem: String,
    },
    #[error(
        "containerd {version} is too old: {}.{} or later is needed; upgrade it, running tasks go on meanwhile",
        VERSION_MIN.0,
        VERSION_MIN.1
    )]
    TooOld { version: String },
}

/// Connects, and waits up to `patience` for an answer. Says once that it waits, and tells `waiting` why at every try.
///
/// # Errors
/// No answer in time, or a version that is too old.
pub async fn connect(
    address: &Path,
    patience: Duration,
    waiting: impl Fn(&str),
) -> Result<Channel, ConnectError> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        let tried = timeout(TRY_LIMIT, answer(address)).await;
        let problem = match tried {
            Ok(Ok((channel, version))) => {
                if told {
                    tracing::info!(version, "containerd answers");
                }
                return supported(&version).map(|()| channel);
            }
            Ok(Err(problem)) => problem,
            Err(_) => format!("no answer within {} s", TRY_LIMIT.as_secs()),
        };
        waiting(&problem);
        if begun.elapsed() >= patience {
            return Err(ConnectError::Away {
                address: address.to_owned(),
                waited_s: begun.elapsed().as_secs(),
                problem,
            });
        }
        if !told {
            let seconds = patience.as_secs();
            tracing::warn!(address = %address.display(), %problem, "containerd does not answer yet; waiting up to {seconds} s");
            told = true;
        }
        sleep(PAUSE.min(patience)).await;
    }
}

async fn answer(address: &Path) -> Result<(Channel, String), String> {
    let channel = containerd_client::connect(address)
        .await
        .map_err(|error| Chain(&error).to_string())?;
    let mut client = VersionClient::new(channel.clone());
    match client.version(()).await {
        Ok(answer) => Ok((channel, answer.into_inner().version)),
        Err(status) => Err(status.message().to_owned()),
    }
}

/// A version that says nothing we understand is let through: distributions have their own forms.
fn supported(version: &str) -> Result<(), ConnectError> {
    let mut numbers = version
        .trim_start_matches('v')
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < VERSION_MIN => Err(ConnectError::TooOld {
            version: version.to_owned(),
        }),
        (Some(Ok(_)), Some(Ok(_))) => Ok(()),
        _ => {
            tracing::warn!(
                version,
                "containerd says a version that is not understood; going on"
            );
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_to_be_too_old_is_refused() {
        for good in [
            "1.6.20~ds1",
            "1.6.0",
            "v1.7.2",
            "2.0.0-rc.1",
            "1.10.0",
            "unknown",
            "",
        ] {
            assert!(supported(good).is_ok(), "{good}");
        }
        for old in ["1.5.11", "v1.4.0", "0.2.3"] {
            let error = supported(old).unwrap_err().to_string();
            assert!(error.contains(old) && error.contains("1.6 or later"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_containerd_that_is_away_is_waited_for_and_then_named() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("containerd.sock");
        let waited = std::sync::atomic::AtomicU32::new(0);
        let count = |_: &str| {
            waited.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        };
        let error = connect(&socket, Duration::from_millis(700), count)
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains("systemctl status containerd"),
            "{error}"
        );
        assert!(waited.into_inner() >= 2);
    }
}
