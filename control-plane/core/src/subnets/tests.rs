use super::*;
use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

fn shape(range: &str, node_prefix_len: u8) -> Shape {
    Shape::parse(range, Some(node_prefix_len)).unwrap()
}

fn nodes(names: &[&str]) -> Vec<Candidate> {
    let one = |name: &&str| Candidate {
        node: name.to_string(),
        ..Candidate::default()
    };
    names.iter().map(one).collect()
}

/// Of a store that was never set back.
fn at(ms: i64) -> AsOf {
    AsOf {
        ms,
        epoch: 1,
        epoch_since_ms: 0,
    }
}

/// A node that has linked since the store was set back, and what it said it uses.
fn linked(name: &str, uses: &[&str]) -> Candidate {
    let uses = uses.iter().map(|range| range.parse().unwrap()).collect();
    Candidate {
        node: name.into(),
        uses: Some(uses),
        ..Candidate::default()
    }
}

fn range(blocks: &Blocks, node: &str) -> Option<String> {
    blocks.of(node).map(|block| block.range.to_string())
}

#[test]
fn a_nodes_part_is_a_24_or_what_leaves_room_for_16_nodes() {
    for (range, node_prefix_len) in [
        ("10.0.0.0/8", 20),
        ("10.64.0.0/12", 24),
        ("10.64.0.0/16", 24),
        ("10.64.0.0/20", 24),
        ("10.64.0.0/22", 26),
        ("10.64.0.0/24", 28),
        ("10.64.0.0/26", 30),
        ("10.64.0.0/29", 30),
    ] {
        assert_eq!(
            Shape::parse(range, None).unwrap().node_prefix_len,
            node_prefix_len,
            "{range}"
        );
    }
}

#[test]
fn what_cannot_be_a_subnet_is_refused_with_what_is_wrong() {
    for (range, node_prefix_len, wrong) in [
        ("10.64.0.0", None, "is not an IPv4 range"),
        ("fd00::/64", None, "is not an IPv4 range"),
        ("10.64.1.0/16", None, "the range is 10.64.0.0/16"),
        ("10.0.0.0/7", None, "is not of /8 to /29"),
        ("10.0.0.0/30", None, "is not of /8 to /29"),
        ("127.1.0.0/16", None, "127.0.0.0/8"),
        ("169.254.128.0/20", None, "169.254.0.0/16"),
        ("224.0.0.0/8", None, "multicast"),
        ("0.0.0.0/8", None, "this network"),
        ("10.64.0.0/16", Some(15), "it is /16 to /28"),
        ("10.64.0.0/16", Some(29), "it is /16 to /28"),
        ("10.64.0.0/24", Some(31), "it is /24 to /30"),
    ] {
        let error = Shape::parse(range, node_prefix_len).unwrap_err().to_string();
        assert!(error.contains(wrong), "{range}: {error}");
    }
}

#[test]
fn a_block_is_one_nodes_until_it_is_gone_and_then_rests() {
    let (shape, mut blocks) = (shape("10.64.0.0/29", 30), Blocks::default());
    assert!(blocks.settle(shape, &nodes(&["a", "b", "c"]), at(0)));
    assert_eq!(range(&blocks, "a").as_deref(), Some("10.64.0.0/30"));
    assert_eq!(range(&blocks, "b").as_deref(), Some("10.64.0.4/30"));
    assert_eq!((range(&blocks, "c"), blocks.free(shape)), (None, 0));
    assert!(!blocks.settle(shape, &nodes(&["a", "b", "c"]), at(0)));

    let mut leaving = nodes(&["a", "b", "c"]);
    leaving[0].leaving = true;
    assert!(!blocks.settle(shape, &leaving, at(0)), "a's tasks still run");
    assert!(blocks.settle(shape, &nodes(&["b", "c"]), at(0)));
    assert_eq!(range(&blocks, "c"), None, "it rests");
    assert!(blocks.settle(shape, &nodes(&["b", "c"]), at(BLOCK_REST_MS)));
    assert_eq!(range(&blocks, "c").as_deref(), Some("10.64.0.0/30"));
}

/// The store's word of a time before, with a block of each node, in an epoch in which nobody has linked yet.
fn set_back(shape: Shape, names: &[&str]) -> Blocks {
    let mut blocks = Blocks::default();
    let nodes: Vec<_> = names.iter().map(|name| linked(name, &[])).collect();
    blocks.settle(shape, &nodes, at(0));
    blocks
}

fn restored(ms: i64) -> AsOf {
    AsOf {
        ms,
        epoch: 7,
        epoch_since_ms: 1,
    }
}

#[test]
fn a_part_that_a_node_uses_is_no_other_nodes_though_the_store_forgot_it() {
    // b joined after the backup, and has the second block; c comes anew.
    let shape = shape("10.64.0.0/24", 26);
    let mut blocks = set_back(shape, &["a"]);
    let (a, c) = (linked("a", &["10.64.0.0/26"]), linked("c", &[]));
    blocks.settle(shape, &[a.clone(), c.clone()], restored(1));
    assert_eq!(range(&blocks, "c"), None, "b may speak yet");
    let b = linked("b", &["10.64.0.64/26"]);
    blocks.settle(shape, &[a.clone(), c.clone(), b.clone()], restored(2));
    assert_eq!(range(&blocks, "b").as_deref(), Some("10.64.0.64/26"), "at once");
    let all = [a, c, b];
    blocks.settle(shape, &all, restored(AFTER_RESTORE_MS));
    assert_eq!(range(&blocks, "c"), None);
    blocks.settle(shape, &all, restored(1 + AFTER_RESTORE_MS));
    assert_eq!(range(&blocks, "c").as_deref(), Some("10.64.0.128/26"));
    assert_eq!(range(&blocks, "a").as_deref(), Some("10.64.0.0/26"));
}

#[test]
fn a_node_that_does_not_link_is_waited_for_until_a_time() {
    let shape = shape("10.64.0.0/24", 26);
    let mut blocks = set_back(shape, &["a"]);
    let mut all = nodes(&["a"]);
    all.push(linked("c", &[]));
    for (ms, has) in [
        (1, false),
        (1 + AFTER_RESTORE_MS, false),
        (1 + AFTER_RESTORE_MS_MAX, true),
    ] {
        blocks.settle(shape, &all, restored(ms));
        assert_eq!(range(&blocks, "c").is_some(), has, "after {ms} ms");
    }
    // A clock that is set back does not begin it again.
    assert!(!blocks.settle(shape, &all, restored(0)));
}

#[test]
fn a_subnet_that_is_made_long_after_a_restore_waits_for_nobody() {
    let shape = shape("10.64.0.0/24", 26);
    let mut blocks = Blocks::default();
    let mut all = nodes(&["gone"]);
    all.push(linked("c", &[]));
    blocks.settle(shape, &all, restored(1 + AFTER_RESTORE_MS_MAX));
    assert!(range(&blocks, "c").is_some());
}

#[test]
fn what_a_node_says_goes_before_what_a_backup_says() {
    // In the backup a has the first block and b the second; since then b was gone, and a got its block.
    let shape = shape("10.64.0.0/24", 26);
    let mut blocks = set_back(shape, &["a", "b"]);
    let mut all = vec![linked("a", &["10.64.0.64/26"]), nodes(&["b"]).remove(0)];
    blocks.settle(shape, &all, restored(1));
    assert_eq!(range(&blocks, "a").as_deref(), Some("10.64.0.64/26"));
    assert_eq!(range(&blocks, "b"), None);
    // Two that say the same: the first keeps it.
    all[1] = linked("b", &["10.64.0.64/26"]);
    blocks.settle(shape, &all, restored(1 + AFTER_RESTORE_MS));
    assert_eq!(range(&blocks, "a").as_deref(), Some("10.64.0.64/26"));
    assert_eq!(range(&blocks, "b").as_deref(), Some("10.64.0.128/26"));
    // What a node said when it linked is not taken for news later.
    assert!(!blocks.settle(shape, &all, restored(2 + AFTER_RESTORE_MS)));
}

#[test]
fn a_store_that_was_never_set_back_knows_best() {
    let shape = shape("10.64.0.0/24", 26);
    let mut blocks = Blocks::default();
    blocks.settle(shape, &nodes(&["a"]), at(0));
    // Of a copy of its disk, or a lie.
    let all = [
        nodes(&["a"]).remove(0),
        linked("b", &["10.64.0.0/26", "10.64.0.0/24"]),
    ];
    blocks.settle(shape, &all, at(1));
    assert_eq!(range(&blocks, "a").as_deref(), Some("10.64.0.0/26"));
    assert_eq!(range(&blocks, "b").as_deref(), Some("10.64.0.64/26"));
}

#[test]
fn what_an_earlier_version_stored_is_read() {
    let stored = r#"{"held": {"a": {"range": "10.64.0.0/26"}}, "resting": {}, "next": 1}"#;
    let mut blocks: Blocks = serde_json::from_str(stored).unwrap();
    let shape = shape("10.64.0.0/24", 26);
    blocks.settle(shape, &[linked("a", &["10.64.0.0/26"]), linked("b", &[])], at(1));
    assert_eq!(range(&blocks, "b").as_deref(), Some("10.64.0.64/26"));
}

#[test]
fn what_a_node_says_of_its_block_is_kept_with_it() {
    let (shape, mut blocks) = (shape("10.64.0.0/24", 28), Blocks::default());
    blocks.settle(shape, &nodes(&["a"]), at(0));
    assert!(blocks.note("a", Some("routed elsewhere".into()), None));
    assert!(!blocks.note("a", Some("routed elsewhere".into()), None));
    assert!(!blocks.note("b", Some("not its".into()), None));
    assert!(blocks.note("a", None, None));
    let tasks = |blocks: &Blocks| blocks.of("a").unwrap().tasks();
    let all = tasks(&blocks);
    assert!(blocks.note("a", None, Some(1)) && tasks(&blocks) == 1);
    assert!(blocks.note("a", None, Some(u32::MAX)) && tasks(&blocks) == all);
    assert!(blocks.note("a", None, None));
}

#[test]
fn ids_look_like_those_that_clients_know() {
    let id = id(u128::MAX / 3);
    assert_eq!(id, "subnet-55555555555555555");
    assert!(is_id(&id));
    for bad in [
        "subnet-default",
        "subnet-5555555555555555",
        "sg-55555555555555555",
        "subnet-5555555555555555G",
    ] {
        assert!(!is_id(bad), "{bad}");
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in ".{0,40}", node_prefix_len in any::<Option<u8>>()) {
        if let Ok(shape) = Shape::parse(&text, node_prefix_len) {
            prop_assert!(shape.node_prefix_len >= shape.range.prefix_len());
            prop_assert!(addresses(shape.range) >= 2);
        }
    }

    #[test]
    fn blocks_never_overlap_and_lie_in_their_subnet(
        bits in 0u8..=4,
        rounds in prop::collection::vec(
            (prop::collection::btree_map("[a-h]", prop::option::of(0u8..=16), 0..8), 0i64..200_000, 0u64..2),
            1..12,
        ),
    ) {
        let shape = shape("10.64.0.0/24", 24 + bits);
        let (mut blocks, mut now) = (Blocks::default(), at(0));
        for (names, later, epochs) in rounds {
            let ms = now.ms + later;
            let epoch_since_ms = if epochs > 0 { ms } else { now.epoch_since_ms };
            now = AsOf { ms, epoch: now.epoch + epochs, epoch_since_ms };
            // Anything may be said, by any number of nodes, before and after the store was set back.
            let nodes: Vec<Candidate> = names
                .iter()
                .map(|(name, says)| match says {
                    Some(n) => linked(name, &[&format!("10.64.0.{}/{}", u32::from(*n) * 16 % 256, 24 + bits)]),
                    None => nodes(&[name]).remove(0),
                })
                .collect();
            blocks.settle(shape, &nodes, now);
            let held: Vec<_> = blocks.held().map(|(_, block)| block.range).collect();
            for (at, one) in held.iter().enumerate() {
                prop_assert!(shape.range.contains(one));
                prop_assert_eq!(one.prefix_len(), shape.node_prefix_len);
                prop_assert!(held[..at].iter().all(|other| !overlap(*one, *other)));
            }
            prop_assert_eq!(blocks.held().count() + blocks.free(shape) as usize, 1 << bits);
        }
    }
}
