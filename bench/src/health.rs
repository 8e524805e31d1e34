//! Owns how long a dependent waits after the health check it waits for has succeeded. Both ends are told by containerd,
//! not by the agent: the end of the probe's process, and the record of the dependent's container.

use std::process::Stdio;

use anyhow::{Context as _, ensure};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use crate::{host::Host, node::Node, report::Report, specs};

const ROW: &str = "healthy_to_dependent_start";
/// containerd's namespace is the agent's instance.
const NAMESPACE: &str = "berth-bench";
const DAY_MS: f64 = 86_400_000.0;

/// Everything that containerd says.
struct Events {
    lines: Lines<BufReader<ChildStdout>>,
    _ctr: Child,
}

/// One task after the other, each of a container with a health check and one that waits for it to be healthy.
pub async fn measure(runs: usize, host: &Host, node: &mut Node, report: &mut Report) -> anyhow::Result<()> {
    let mut events = Events::listen(host)?;
    let mut times = Vec::new();
    // The first one pays for cold caches.
    for run in 0..=runs {
        let (task, main, side) = specs::pair();
        let task = [task];
        node.run(&task).await?;
        let took = events.between(&format!("{main}-1"), &format!("{side}-1")).await?;
        node.remove(&task).await?;
        if run > 0 {
            times.push(took);
        }
    }
    let mut sorted = times.clone();
    sorted.sort_by(f64::total_cmp);
    // Nearest rank: of 200 runs the 198th.
    let rank = (sorted.len() * 99).div_ceil(100).max(1);
    let p99 = *sorted.get(rank - 1).context("no runs")?;
    let most = *sorted.last().context("no runs")?;
    report.add(ROW, "ms", times, Vec::new(), "");
    report.add(&format!("{ROW}_p99"), "ms", vec![p99], Vec::new(), "");
    report.add(&format!("{ROW}_max"), "ms", vec![most], Vec::new(), "");
    Ok(())
}

impl Events {
    fn listen(host: &Host) -> anyhow::Result<Self> {
        let mut ctr = Command::new("ctr")
            .args([
                "-a",
                &host.socket().display().to_string(),
                "-n",
                NAMESPACE,
                "events",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start ctr events")?;
        let output = ctr.stdout.take().context("ctr has no output")?;
        Ok(Self {
            lines: BufReader::new(output).lines(),
            _ctr: ctr,
        })
    }

    /// From the end of the first probe of `main` to the record of `side`, milliseconds.
    async fn between(&mut self, main: &str, side: &str) -> anyhow::Result<f64> {
        // The shim tells of an exit in its own time: the record may be heard of first.
        let (mut healthy, mut made) = (None, None);
        loop {
            if let (Some(healthy), Some(made)) = (healthy, made) {
                let took: f64 = (made - healthy + DAY_MS) % DAY_MS;
                ensure!(
                    took < DAY_MS / 2.0,
                    "the dependent was made before the probe had ended"
                );
                return Ok(took);
            }
            let line = self.lines.next_line().await?.context("ctr events has ended")?;
            let Some((head, body)) = line.split_once(" {") else {
                continue;
            };
            let body: serde_json::Value = serde_json::from_str(&format!("{{{body}"))?;
            if head.ends_with(" /tasks/exit") && body["container_id"] == main && body["id"] == "probe" {
                let at = body["exited_at"].as_str().and_then(time_of_day);
                healthy = healthy.or(Some(at.with_context(|| format!("no time in {line}"))?));
            }
            if head.ends_with(" /containers/create") && body["id"] == side {
                made = Some(time_of_day(head).with_context(|| format!("no time in {line}"))?);
            }
        }
    }
}

/// Of `… HH:MM:SS.fraction…` or `…THH:MM:SS.fractionZ`, in milliseconds.
fn time_of_day(text: &str) -> Option<f64> {
    let time = text.split([' ', 'T']).nth(1)?.trim_end_matches('Z');
    let mut parts = time.split(':').map(|part| part.parse::<f64>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    Some((hours * 3600.0 + minutes * 60.0 + seconds) * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_write_a_time_are_read() {
        let event = "2026-01-02 03:04:05.006 +0000 UTC berth-bench /containers/create";
        let payload = "2026-01-02T03:04:05.006Z";
        for text in [event, payload] {
            let read = time_of_day(text).unwrap();
            assert!((read - 11_045_006.0).abs() < 1e-3, "{read}");
        }
        assert_eq!(time_of_day("yesterday"), None);
    }
}
