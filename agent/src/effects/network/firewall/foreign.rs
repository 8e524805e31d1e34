//! Owns what other firewalls of the host do to our packets. Never changes any of it.

use serde::Deserialize;

use super::{
    super::{error::NetworkError, names::Names},
    nft::nft,
};

/// Chains of others that drop forwarded packets by policy, as `family table chain`: our accept cannot override them,
/// because every base chain of a hook must accept.
pub(in super::super) async fn foreign_forward_drops(names: &Names) -> Result<Vec<String>, NetworkError> {
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
}
