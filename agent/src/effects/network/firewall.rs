//! Owns one nftables table, `inet <instance>`, replaced as a whole by one `nft` run at start. Its rules match link name
//! prefix and address range, so they do not grow with tasks. Never touches a table of somebody else.

use std::{net::Ipv4Addr, process::Stdio, time::Duration};

use ipnet::Ipv4Net;
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
};

use super::{error::NetworkError, names::Names};
use crate::endpoints::ADDRESS;

/// One `nft` run: normally 6 to 9 ms.
const NFT_DEADLINE: Duration = Duration::from_secs(10);
/// What is read of one `nft` run's output, bytes.
const NFT_OUTPUT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The table as `nft -f -` takes it: made if missing, deleted, made anew, in one transaction.
///
/// - A task reaches nothing in 169.254.0.0/16 through the host: metadata services of the host's own cloud are not its.
/// - Tasks have no IPv6 yet, and IPv6 has no strict reverse path filter: nothing of it is forwarded for them.
/// - A source that the host does not route back through the very link it came in on is spoofed, and dropped. Each task
///   link has `rp_filter=1` as well, but the kernel takes the larger of that and `conf.all.rp_filter`, and 2, which many
///   distributions set there, is the weaker check.
/// - Port 80 of [`ADDRESS`] is the task metadata endpoint, which listens on `endpoint_port` of it: tasks reach that and nothing
///   else of the host there, and nobody else reaches it.
fn ruleset(names: &Names, range: Ipv4Net, kept: &[Ipv4Addr], endpoint_port: u16) -> String {
    let kept: String = kept.iter().map(|address| format!(", {address}")).collect();
    let (table, prefix) = (names.table(), names.prefix());
    format!(
        r#"table inet {table} {{ }}
delete table inet {table}
table inet {table} {{
  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    iifname "{prefix}*" meta nfproto ipv4 fib saddr . iif oif missing counter drop
  }}
  chain dstnat {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname "{prefix}*" ip daddr {ADDRESS} tcp dport 80 dnat ip to {ADDRESS}:{endpoint_port}
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{prefix}*" ip daddr {ADDRESS} tcp dport {endpoint_port} accept
    iifname "{prefix}*" ip daddr {ADDRESS} counter drop
    ip daddr {ADDRESS} tcp dport {endpoint_port} counter drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{prefix}*" ip daddr 169.254.0.0/16 counter drop
    iifname "{prefix}*" ip saddr 169.254.0.0/16 counter drop
    iifname "{prefix}*" meta nfproto ipv6 counter drop
    iifname "{prefix}*" accept
    oifname "{prefix}*" accept
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {{ {range}{kept} }} oifname != "lo" oifname != "{prefix}*" masquerade
  }}
}}
"#
    )
}

/// Replaces the table. Idempotent.
pub(super) async fn apply(
    names: &Names,
    range: Ipv4Net,
    kept: &[Ipv4Addr],
    endpoint_port: u16,
) -> Result<(), NetworkError> {
    let rules = ruleset(names, range, kept, endpoint_port);
    nft("apply the table", &["-f", "-"], &rules).await?;
    Ok(())
}

/// Deletes the table. Idempotent.
pub(super) async fn remove(names: &Names) -> Result<(), NetworkError> {
    let table = names.table();
    let script = format!("table inet {table} {{ }}\ndelete table inet {table}\n");
    nft("delete the table", &["-f", "-"], &script).await?;
    Ok(())
}

/// Chains of others that drop forwarded packets by policy, as `family table chain`: our accept cannot override them,
/// because every base chain of a hook must accept.
pub(super) async fn foreign_forward_drops(names: &Names) -> Result<Vec<String>, NetworkError> {
    let listing = nft("list chains", &["-j", "list", "chains"], "").await?;
    Ok(forward_drops(&listing, names.table()))
}

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    chain: Option<Chain>,
}

#[derive(Deserialize)]
struct Chain {
    family: String,
    table: String,
    name: String,
    hook: Option<String>,
    policy: Option<String>,
}

fn forward_drops(listing: &[u8], own_table: &str) -> Vec<String> {
    let Ok(listing) = serde_json::from_slice::<Listing>(listing) else {
        return Vec::new();
    };
    let drops = |chain: &Chain| {
        chain.hook.as_deref() == Some("forward")
            && chain.policy.as_deref() == Some("drop")
            && matches!(chain.family.as_str(), "ip" | "inet")
            && chain.table != own_table
    };
    listing
        .nftables
        .into_iter()
        .filter_map(|entry| entry.chain)
        .filter(drops)
        .map(|chain| format!("{} {} {}", chain.family, chain.table, chain.name))
        .collect()
}

/// Runs `nft` in the caller's network namespace and returns what it printed.
async fn nft(step: &'static str, args: &[&str], input: &str) -> Result<Vec<u8>, NetworkError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_foreign_forward_chains_with_policy_drop_are_named() {
        let listing = br#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 1, "type": "filter",
                       "hook": "forward", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "ip", "table": "filter", "name": "DOCKER", "handle": 2}},
            {"chain": {"family": "inet", "table": "fw", "name": "input", "handle": 1, "type": "filter",
                       "hook": "input", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "inet", "table": "berth", "name": "forward", "handle": 1, "type": "filter",
                       "hook": "forward", "prio": 0, "policy": "drop"}}]}"#;
        assert_eq!(forward_drops(listing, "berth"), ["ip filter FORWARD"]);
        assert!(forward_drops(b"not json", "berth").is_empty());
    }

    #[test]
    fn the_ruleset_replaces_the_table_in_one_transaction() {
        let names = Names::new("berth-t").unwrap();
        let range = "10.1.0.0/16".parse().unwrap();
        let rules = ruleset(&names, range, &[], 51679);
        let lines: Vec<_> = rules.lines().collect();
        assert_eq!(lines[0], "table inet berth-t { }");
        assert_eq!(lines[1], "delete table inet berth-t");
        assert!(rules.contains("ip saddr { 10.1.0.0/16 } oifname != "));
        let rules = ruleset(&names, range, &["10.9.0.1".parse().unwrap()], 51679);
        assert!(rules.contains("ip saddr { 10.1.0.0/16, 10.9.0.1 } oifname != "));
    }
}
